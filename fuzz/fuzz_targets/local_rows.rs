#![no_main]

ferry_fuzz::fuzz!("local_rows");
