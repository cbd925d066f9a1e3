#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _refused = local_worker::testing::damage::read_template(bytes);
});
