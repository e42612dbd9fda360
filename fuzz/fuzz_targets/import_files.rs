#![no_main]

ferry_fuzz::fuzz!("import_files");
