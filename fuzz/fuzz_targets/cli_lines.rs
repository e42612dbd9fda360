#![no_main]

ferry_fuzz::fuzz!("cli_lines");
