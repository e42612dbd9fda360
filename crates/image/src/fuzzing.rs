//! A door for tests that hand any bytes to parsers of this crate which are otherwise its own business. Most are public:
//! headers, files of exports, messages of watchers.

/// A value under one of Ferry's own keys in a header.
///
/// # Panics
/// When settings that were read do not come back from their encoding.
pub fn settings(data: &[u8]) {
    crate::migration::settings::check_decoding(data);
}
