#![no_main]

ferry_fuzz::fuzz!("nbd_client");
