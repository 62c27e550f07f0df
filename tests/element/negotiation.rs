// SPDX-License-Identifier: MPL-2.0

//! Formats, sizes and their changes.

use gst::prelude::*;

use starsr_testkit::rig::*;

/// A frame of an even grey of brightness `value` in any format.
fn grey(caps: &str, value: f32, k: u64) -> gst::Buffer {
    let info = gst_video::VideoInfo::from_caps(&caps.parse::<gst::Caps>().unwrap()).unwrap();
    // GStreamer's own converter makes it, to judge the element's by.
    let rgb =
        gst_video::VideoInfo::builder(gst_video::VideoFormat::Argb64, info.width(), info.height())
            .fps(info.fps())
            .build()
            .unwrap();
    let word = ((value * 65535.0) as u16).to_ne_bytes();
    let pixel = [0xff, 0xff, word[0], word[1], word[0], word[1], word[0], word[1]];
    let from = gst::Buffer::from_mut_slice(pixel.repeat((info.width() * info.height()) as usize));
    let mut to = gst::Buffer::with_size(info.size()).unwrap();
    let converter = gst_video::VideoConverter::new(&rgb, &info, None).unwrap();
    {
        let from = gst_video::VideoFrameRef::from_buffer_ref_readable(&from, &rgb).unwrap();
        let mut to =
            gst_video::VideoFrameRef::from_buffer_ref_writable(to.make_mut(), &info).unwrap();
        converter.frame_ref(&from, &mut to);
    }
    let b = to.make_mut();
    b.set_pts(FRAME * k);
    b.set_duration(FRAME);
    b.set_offset(k);
    to
}

/// The mean brightness of a frame, by GStreamer's own converter.
fn brightness(caps: &gst::Caps, buffer: &gst::BufferRef) -> f32 {
    let info = gst_video::VideoInfo::from_caps(caps).unwrap();
    let rgb =
        gst_video::VideoInfo::builder(gst_video::VideoFormat::Argb64, info.width(), info.height())
            .fps(info.fps())
            .build()
            .unwrap();
    let mut to = gst::Buffer::with_size(rgb.size()).unwrap();
    let converter = gst_video::VideoConverter::new(&info, &rgb, None).unwrap();
    {
        let from = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
        let mut to =
            gst_video::VideoFrameRef::from_buffer_ref_writable(to.make_mut(), &rgb).unwrap();
        converter.frame_ref(&from, &mut to);
    }
    let words = bytes(&to);
    let sum: f64 = words
        .chunks_exact(8)
        .flat_map(|p| [[p[2], p[3]], [p[4], p[5]], [p[6], p[7]]])
        .map(|word| f64::from(u16::from_ne_bytes(word)))
        .sum();
    (sum / (words.len() as f64 / 8.0 * 3.0) / 65535.0) as f32
}

#[test]
fn every_format_passes_through() {
    for (format, more) in [
        ("I420", ",colorimetry=bt601"),
        ("I420", ",colorimetry=bt709,chroma-site=mpeg2"),
        ("I420", ",colorimetry=(string)1:4:0:0,chroma-site=jpeg"),
        ("YV12", ""),
        ("NV12", ",colorimetry=bt709"),
        ("NV21", ""),
        ("Y42B", ",colorimetry=bt709"),
        ("YUY2", ""),
        ("UYVY", ""),
        ("Y444", ""),
        ("AYUV", ""),
        ("RGB", ""),
        ("BGR", ""),
        ("RGBA", ""),
        ("BGRx", ""),
        ("ARGB", ""),
        ("BGRA", ""),
        ("GBR", ""),
        ("GRAY8", ""),
        ("GRAY16_LE", ""),
        ("I420_10LE", ",colorimetry=bt2100-pq"),
        ("I422_10LE", ",colorimetry=bt709"),
        ("Y444_10LE", ""),
        ("P010_10LE", ",colorimetry=bt2100-hlg"),
        ("v210", ""),
        ("RGB16", ""),
    ] {
        let rest = format!("framerate=30000/1001,pixel-aspect-ratio=4/3{more}");
        let caps = format!("video/x-raw,format={format},width=14,height=10,{rest}");
        let rig = Rig::new(starsr(4, 1), None);
        rig.start(&caps);
        for k in 0..6 {
            rig.push(grey(&caps, 0.2 + 0.1 * k as f32, k))
                .unwrap_or_else(|e| panic!("{caps}: {e:?} {:?}", rig.errors()));
        }
        rig.eos();
        assert_eq!(rig.offsets(), [0, 1, 2, 3, 4, 5], "{format}");
        let expected: gst::Caps =
            format!("video/x-raw,format={format},width=56,height=40,{rest}").parse().unwrap();
        for (k, (buffer, caps)) in rig.buffers().iter().zip(rig.caps_of_buffers()).enumerate() {
            assert!(caps.is_subset(&expected), "{caps} is not {expected}");
            let (found, wanted) = (brightness(&caps, buffer), 0.2 + 0.1 * k as f32);
            let tolerance = if format == "RGB16" { 0.03 } else { 0.008 };
            assert!(
                (found - wanted).abs() < tolerance,
                "{format}{more}, frame {k}: {found}, not {wanted}"
            );
        }
    }
}

/// What the frames of `caps` become where downstream takes `accepted`.
fn becomes(caps: &str, accepted: &str) -> gst::Caps {
    let rig = Rig::new(starsr(2, 0), Some(accepted));
    rig.start(caps);
    for k in 0..3 {
        rig.push(grey(caps, 0.25 * (k + 1) as f32, k)).unwrap_or_else(|e| panic!("{caps}: {e:?}"));
    }
    rig.eos();
    let all = rig.caps_of_buffers();
    assert_eq!(all.len(), 3);
    for (k, buffer) in rig.buffers().iter().enumerate() {
        let info = gst_video::VideoInfo::from_caps(&all[k]).unwrap();
        assert_eq!(buffer.size(), info.size());
        let (found, wanted) = (brightness(&all[k], buffer), 0.25 * (k + 1) as f32);
        assert!((found - wanted).abs() < 0.01, "{}: {found}, not {wanted}", all[k]);
    }
    all[0].clone()
}

#[test]
fn downstream_may_want_another_format_or_size() {
    let input = "video/x-raw,format=I420,width=160,height=90,framerate=25/1,colorimetry=bt601";
    for (accepted, expected) in [
        ("video/x-raw,format=RGB", "video/x-raw,format=RGB,width=640,height=360"),
        (
            "video/x-raw,format={RGB,GRAY8,NV12}",
            "video/x-raw,format=NV12,width=640,height=360,colorimetry=bt601",
        ),
        ("video/x-raw,format=GRAY8", "video/x-raw,format=GRAY8,width=640,height=360"),
        (
            "video/x-raw,width=1000",
            "video/x-raw,format=I420,width=1000,height=562,pixel-aspect-ratio=1/1",
        ),
        (
            "video/x-raw,height=180",
            "video/x-raw,format=I420,width=320,height=180,pixel-aspect-ratio=1/1",
        ),
        (
            "video/x-raw,width=100,height=100",
            "video/x-raw,format=I420,width=100,height=100,pixel-aspect-ratio=16/9",
        ),
        (
            "video/x-raw,format=BGRA,width=64,height=36",
            "video/x-raw,format=BGRA,width=64,height=36",
        ),
    ] {
        let found = becomes(input, accepted);
        assert!(found.is_subset(&expected.parse::<gst::Caps>().unwrap()), "{accepted}: {found}");
    }
}

#[test]
fn scale_sets_the_size() {
    for (scale, expected) in [(1, (16, 8)), (2, (32, 16)), (3, (48, 24)), (8, (128, 64))] {
        let element = starsr(2, 0);
        element.set_property("scale", scale as u32);
        let rig = Rig::new(element, None);
        rig.start(CAPS);
        rig.push_all(0..2);
        rig.eos();
        let s = rig.caps_of_buffers()[0].structure(0).unwrap().to_owned();
        assert_eq!((s.get::<i32>("width").unwrap(), s.get::<i32>("height").unwrap()), expected);
        assert!(bytes(&rig.buffers()[1])[0].abs_diff(level(1)) <= 1);
    }
}

/// The source can make any size; it should make the one that is enlarged to what downstream wants.
#[test]
fn upstream_is_offered_the_input_size() {
    init();
    let rig = Rig::new(starsr(2, 0), Some("video/x-raw,width=1000,height=960"));
    let offered = rig.src.peer_query_caps(None);
    let first = offered.structure(0).unwrap();
    assert_eq!(
        (first.get::<i32>("width").unwrap(), first.get::<i32>("height").unwrap()),
        (250, 240)
    );
    // The best after that is anything.
    assert!(offered.can_intersect(&"video/x-raw,width=33,height=77".parse::<gst::Caps>().unwrap()));
}

#[test]
fn other_caps_let_the_frames_out_under_the_old_ones() {
    let rig = Rig::new(starsr(8, 2), None);
    let steps = [
        CAPS.to_string(),
        // The same again cuts nothing.
        CAPS.to_string(),
        CAPS.replace("width=16", "width=32"),
        CAPS.replace("width=16", "width=32").replace("I420", "NV12"),
        CAPS.replace("I420", "I420_10LE"),
        CAPS.replace("25/1", "30/1"),
    ];
    rig.event(gst::event::StreamStart::new("test"));
    let mut k = 0;
    for (i, caps) in steps.iter().enumerate() {
        assert!(rig.caps(caps), "{caps}");
        if i == 0 {
            rig.segment(gst::ClockTime::ZERO);
        }
        assert_eq!(rig.buffers().len() as u64, if i == 1 { 0 } else { k });
        for _ in 0..3 {
            rig.push(grey(caps, 0.5, k)).unwrap();
            k += 1;
        }
    }
    rig.eos();
    assert_eq!(rig.offsets(), (0..k).collect::<Vec<_>>());
    for (k, caps) in rig.caps_of_buffers().iter().enumerate() {
        let (info, input) = (
            gst_video::VideoInfo::from_caps(caps).unwrap(),
            gst_video::VideoInfo::from_caps(&steps[k / 3].parse::<gst::Caps>().unwrap()).unwrap(),
        );
        assert_eq!(
            (info.width(), info.height()),
            (input.width() * 4, input.height() * 4),
            "frame {k}"
        );
        assert_eq!((info.format(), info.fps()), (input.format(), input.fps()), "frame {k}");
        assert_eq!(rig.buffers()[k].size(), info.size(), "frame {k}");
    }
}

#[test]
fn a_reconfiguration_that_changes_nothing_cuts_nothing() {
    let rig = Rig::started(8, 2);
    rig.push_all(0..3);
    rig.sink.push_event(gst::event::Reconfigure::new());
    rig.push_all(3..5);
    assert!(rig.buffers().is_empty());
    rig.eos();
    assert_eq!(rig.offsets(), [0, 1, 2, 3, 4]);
}

#[test]
fn interlaced_video_is_refused_once_with_the_remedy() {
    for mode in ["interleaved", "mixed"] {
        let rig = Rig::new(starsr(4, 1), None);
        rig.event(gst::event::StreamStart::new("test"));
        rig.caps(&format!("{CAPS},interlace-mode={mode}"));
        rig.segment(gst::ClockTime::ZERO);
        for k in 0..4 {
            assert_eq!(rig.push(frame(k)), Err(gst::FlowError::NotNegotiated));
        }
        let errors = rig.errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("! deinterlace !") && errors[0].contains(mode), "{errors:?}");
    }
}

/// Single fields as buffers: the caps have a feature of their own, under which the deinterlacer is
/// named too.
#[test]
fn single_fields_are_refused_once_with_the_remedy() {
    let caps =
        CAPS.replace("video/x-raw", "video/x-raw(format:Interlaced)") + ",interlace-mode=alternate";
    for accepted in [None, Some("video/x-raw,format=I420,interlace-mode=progressive")] {
        let rig = Rig::new(starsr(4, 1), accepted);
        assert!(rig.src.peer_query_accept_caps(&caps.parse().unwrap()));
        rig.event(gst::event::StreamStart::new("test"));
        rig.caps(&caps);
        rig.segment(gst::ClockTime::ZERO);
        for k in 0..4 {
            assert_eq!(rig.push(frame(k)), Err(gst::FlowError::NotNegotiated));
        }
        let errors = rig.errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].contains("! deinterlace !") && errors[0].contains("alternate"),
            "{errors:?}"
        );
        // A source that can do better is offered better first.
        let offered = rig.src.peer_query_caps(None);
        assert!(offered.features(0).unwrap().contains("memory:SystemMemory"));
    }
}

#[test]
fn memory_that_cannot_be_mapped_is_refused_in_negotiation() {
    for feature in ["memory:DMABuf", "memory:GLMemory", "memory:CUDAMemory", "memory:VAMemory"] {
        let rig = Rig::new(starsr(4, 1), None);
        let caps = CAPS.replace("video/x-raw", &format!("video/x-raw({feature})"));
        let parsed: gst::Caps = caps.parse().unwrap();
        assert!(!rig.src.peer_query_caps(None).can_intersect(&parsed), "{feature}");
        assert!(!rig.src.peer_query_accept_caps(&parsed), "{feature}");
        rig.event(gst::event::StreamStart::new("test"));
        rig.caps(&caps);
        rig.segment(gst::ClockTime::ZERO);
        assert_eq!(rig.push(frame(0)), Err(gst::FlowError::NotNegotiated), "{feature}");
        // It is not for the element to call that an error: upstream may try something else.
        assert!(rig.errors().is_empty());
        rig.start(CAPS);
        rig.push_all(0..3);
        rig.eos();
        assert_eq!(rig.offsets(), [0, 1, 2]);
    }
}

#[test]
fn one_pixel_is_enough() {
    for (width, height) in [(1, 1), (1, 9), (7, 1), (2, 3), (33, 17)] {
        for format in ["I420", "NV12", "RGB", "GRAY8", "v210", "Y444_10LE"] {
            let caps =
                format!("video/x-raw,format={format},width={width},height={height},framerate=25/1");
            let rig = Rig::new(starsr(2, 0), None);
            rig.start(&caps);
            for k in 0..3 {
                rig.push(grey(&caps, 0.5, k))
                    .unwrap_or_else(|e| panic!("{caps}: {e:?} {:?}", rig.errors()));
            }
            rig.eos();
            assert_eq!(rig.offsets(), [0, 1, 2], "{caps}");
            let info = gst_video::VideoInfo::from_caps(&rig.caps_of_buffers()[2]).unwrap();
            assert_eq!((info.width(), info.height()), (4 * width, 4 * height));
            let found = brightness(&rig.caps_of_buffers()[2], &rig.buffers()[2]);
            assert!((found - 0.5).abs() < 0.02, "{caps}: {found}");
        }
    }
}

/// A size that no memory would do for, and one that is beyond what any picture can have.
#[test]
fn sizes_that_cannot_work_are_refused_with_the_numbers() {
    for (size, parts) in [
        ("width=8000,height=8000", ["8000x8000", "GiB"]),
        ("width=16000,height=16000", ["64000x64000", "2 GiB"]),
        ("width=20000,height=8", ["80000", "65536"]),
        ("width=50000,height=50000", ["width=(int)50000", "2 GiB"]),
    ] {
        let rig = Rig::new(starsr(64, 1), None);
        rig.start(&CAPS.replace("width=16,height=8", size));
        for k in 0..3 {
            assert_eq!(rig.push(frame(k)), Err(gst::FlowError::NotNegotiated));
        }
        let errors = rig.errors();
        assert!(
            errors.len() == 1 && parts.iter().all(|part| errors[0].contains(part)),
            "{errors:?}"
        );
    }
    let rig = Rig::started(8, 2);
    // Frames of 64x32 pixels of three floats, before and after.
    assert!(rig.stat("memory-estimate") > 8 * 2 * 64 * 32 * 12);
}
