#![no_main]

ferry_fuzz::fuzz!("cls_stored");
