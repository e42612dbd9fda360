#![no_main]

ferry_fuzz::fuzz!("image_header_v1");
