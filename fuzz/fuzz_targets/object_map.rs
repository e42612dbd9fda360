#![no_main]

ferry_fuzz::fuzz!("object_map");
