// SPDX-License-Identifier: MPL-2.0

#![no_main]

use libfuzzer_sys::fuzz_target;
use starsr_testkit::fuzz::events;

fuzz_target!(|input: events::Input| events::run(&input));
