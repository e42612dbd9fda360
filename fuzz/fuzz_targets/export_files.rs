#![no_main]

ferry_fuzz::fuzz!("export_files");
