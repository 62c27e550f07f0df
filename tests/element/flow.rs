// SPDX-License-Identifier: MPL-2.0

//! As many frames leave as came in, each with what belongs to it.

use gst::prelude::*;

use starsr_testkit::rig::*;

#[track_caller]
fn check_frames(rig: &Rig, count: u64) {
    let buffers = rig.buffers();
    assert_eq!(buffers.len() as u64, count);
    for (k, buffer) in (0..).zip(&buffers) {
        assert_eq!(buffer.pts(), Some(FRAME * k));
        assert_eq!(buffer.dts(), Some(FRAME * k));
        assert_eq!(buffer.duration(), Some(FRAME));
        assert_eq!((buffer.offset(), buffer.offset_end()), (k, k + 1));
        let bytes = bytes(buffer);
        assert_eq!(bytes.len(), 64 * 32 * 3 / 2);
        assert!(
            bytes[..64 * 32].iter().all(|y| y.abs_diff(level(k)) <= 1),
            "frame {k} is {}",
            bytes[0]
        );
        assert!(bytes[64 * 32..].iter().all(|c| c.abs_diff(128) <= 1), "frame {k} is coloured");
    }
}

#[test]
fn as_many_frames_come_out_as_went_in() {
    for count in [0, 1, 2, 6, 7, 8, 9, 13, 14, 15, 30] {
        let rig = Rig::started(8, 2);
        rig.push_all(0..count);
        assert!(rig.eos());
        check_frames(&rig, count);
        assert_eq!(rig.labels().last().unwrap(), "eos");
        assert_eq!((rig.stat("frames-in"), rig.stat("frames-out")), (count, count));
        assert!(rig.errors().is_empty());
    }
}

#[test]
fn windows_of_every_kind_let_all_frames_out() {
    for (length, overlap, mode) in [
        (1, 0, "blend"),
        (2, 1, "blend"),
        (5, 0, "blend"),
        (4, 2, "wavefront"),
        (8, 4, "wavefront"),
    ] {
        for count in [1, 4, 5, 11, 21] {
            let element = starsr(length, overlap);
            element.set_property_from_str("window-mode", mode);
            let rig = Rig::new(element, None);
            rig.start(CAPS);
            rig.push_all(0..count);
            rig.eos();
            check_frames(&rig, count);
        }
    }
}

#[test]
fn frames_leave_within_the_latency() {
    let rig = Rig::started(8, 2);
    let latency = rig.stat("latency-frames");
    assert!(latency > 0);
    for k in 0..40 {
        rig.push_all([k]);
        let out = rig.buffers().len() as u64;
        assert!(out + latency > k, "{out} frames out after {} in", k + 1);
        assert!(out <= k + 1);
    }
    // The first burst is as long as windows are apart.
    assert!(rig.stat("windows") >= 5);
}

#[test]
fn each_frame_keeps_its_flags() {
    let rig = Rig::started(8, 2);
    for k in 0..12 {
        let mut buffer = frame(k);
        let flags = match k {
            3 => gst::BufferFlags::CORRUPTED,
            4 => gst::BufferFlags::MARKER | gst::BufferFlags::DELTA_UNIT,
            _ => gst::BufferFlags::empty(),
        };
        buffer.make_mut().set_flags(flags);
        rig.push(buffer).unwrap();
    }
    rig.eos();
    let wanted =
        gst::BufferFlags::CORRUPTED | gst::BufferFlags::MARKER | gst::BufferFlags::DELTA_UNIT;
    for (k, buffer) in rig.buffers().iter().enumerate() {
        let expected = match k {
            3 => gst::BufferFlags::CORRUPTED,
            4 => gst::BufferFlags::MARKER | gst::BufferFlags::DELTA_UNIT,
            _ => gst::BufferFlags::empty(),
        };
        assert_eq!(buffer.flags() & wanted, expected, "frame {k}");
    }
}

/// The base class calls every frame discontinuous until the first output; only the buffer's own
/// flag cuts.
#[test]
fn a_discontinuity_ends_the_clip_once() {
    let rig = Rig::started(4, 1);
    for k in 0..12 {
        let mut buffer = frame(k);
        if k == 0 || k == 6 {
            buffer.make_mut().set_flags(gst::BufferFlags::DISCONT);
        }
        rig.push(buffer).unwrap();
        if k == 6 {
            assert_eq!(rig.offsets(), [0, 1, 2, 3, 4, 5]);
        }
    }
    rig.eos();
    check_frames(&rig, 12);
    let discont: Vec<_> =
        rig.buffers().iter().map(|b| b.flags().contains(gst::BufferFlags::DISCONT)).collect();
    assert_eq!(discont.iter().filter(|d| **d).count(), 2);
    assert!(discont[0] && discont[6]);

    let uncut = Rig::started(4, 1);
    uncut.push_all(0..6);
    uncut.eos();
    assert_eq!(rig.stat("windows"), 2 * uncut.stat("windows"));
}

#[test]
fn a_jump_in_time_ends_the_clip_but_a_lost_frame_does_not() {
    let rig = Rig::started(8, 2);
    rig.push_all([0, 1, 2, 4, 5]);
    assert!(rig.offsets().is_empty());
    rig.push_all([200]);
    assert_eq!(rig.offsets(), [0, 1, 2, 4, 5]);
    rig.push_all([20]);
    assert_eq!(rig.offsets(), [0, 1, 2, 4, 5, 200]);
    rig.eos();
    assert_eq!(rig.offsets(), [0, 1, 2, 4, 5, 200, 20]);
}

#[test]
fn a_failing_downstream_stops_the_burst() {
    for error in [gst::FlowError::Error, gst::FlowError::Eos] {
        let rig = Rig::started(4, 1);
        rig.push_all(0..3);
        rig.set_flow(Err(error));
        assert_eq!(rig.push(frame(3)), Err(error));
        let windows = rig.stat("windows");
        for k in 4..20 {
            assert_eq!(rig.push(frame(k)), Err(error));
        }
        assert_eq!(rig.stat("windows"), windows, "the model ran in vain");
        assert!(rig.buffers().is_empty());
        // Downstream posts its own error.
        assert!(rig.errors().is_empty());
    }
}

#[test]
fn the_next_buffer_gets_the_failure_of_a_drain() {
    let drains: [fn(&Rig) -> bool; 2] =
        [|rig| rig.caps(&CAPS.replace("25/1", "30/1")), |rig| rig.segment(FRAME * 100)];
    for drain in drains {
        let rig = Rig::started(8, 2);
        rig.push_all(0..3);
        rig.set_flow(Err(gst::FlowError::Error));
        drain(&rig);
        assert_eq!(rig.push(frame(100)), Err(gst::FlowError::Error));
    }
}

#[test]
fn a_segment_after_downstream_has_ended_plays_on() {
    let rig = Rig::started(4, 1);
    rig.push_all(0..3);
    rig.set_flow(Err(gst::FlowError::Eos));
    assert_eq!(rig.push(frame(3)), Err(gst::FlowError::Eos));
    rig.set_flow(Ok(gst::FlowSuccess::Ok));
    rig.segment(FRAME * 100);
    rig.push_all(100..110);
    rig.eos();
    assert_eq!(rig.offsets(), (100..110).collect::<Vec<_>>());
}

#[test]
fn the_element_can_be_started_again() {
    let rig = Rig::started(4, 1);
    rig.push_all(0..6);
    for _ in 0..2 {
        rig.element.set_state(gst::State::Ready).unwrap();
        rig.forget();
        rig.play();
        rig.start(CAPS);
        rig.push_all(0..6);
        rig.eos();
        check_frames(&rig, 6);
    }
}
