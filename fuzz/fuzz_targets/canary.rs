#![no_main]

ferry_fuzz::fuzz!(ferry_hostile::canary::run);
