// SPDX-License-Identifier: MPL-2.0

#![no_main]

use libfuzzer_sys::fuzz_target;
use starsr_testkit::fuzz::frames;

fuzz_target!(|input: frames::Input| frames::run(&input));
