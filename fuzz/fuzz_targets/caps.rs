// SPDX-License-Identifier: MPL-2.0

#![no_main]

use libfuzzer_sys::fuzz_target;
use starsr_testkit::fuzz::caps;

fuzz_target!(|input: caps::Input| caps::run(&input));
