#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| jeton::fuzzing::frames(data));
