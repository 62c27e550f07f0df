// SPDX-License-Identifier: MPL-2.0

#![no_main]

use libfuzzer_sys::fuzz_target;
use starsr_testkit::fuzz::manifest;

fuzz_target!(|input: manifest::Input| manifest::run(&input));
