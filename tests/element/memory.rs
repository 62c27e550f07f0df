// SPDX-License-Identifier: MPL-2.0

//! Buffers, pools and metas.

use gst::prelude::*;

use starsr_testkit::rig::*;

#[test]
fn upstream_buffers_are_given_back_at_once() {
    let rig = Rig::new(starsr(16, 2), None);
    rig.start(CAPS);
    let pool = gst::BufferPool::new();
    let mut config = pool.config();
    config.set_params(Some(&CAPS.parse().unwrap()), 16 * 8 * 3 / 2, 4, 4);
    pool.set_config(config).unwrap();
    pool.set_active(true).unwrap();
    // Waiting for a buffer that never comes back would be a hang.
    let params = gst::BufferPoolAcquireParams::with_flags(gst::BufferPoolAcquireFlags::DONTWAIT);
    for k in 0..70 {
        let pooled = pool
            .acquire_buffer(Some(&params))
            .unwrap_or_else(|_| panic!("no buffer for frame {k}"));
        // As a decoder wraps its frames: the memory is another buffer's, which is kept by a meta.
        let mut buffer = gst::Buffer::new();
        let whole = gst::BufferCopyFlags::MEMORY | gst::BufferCopyFlags::META;
        pooled.copy_into(buffer.make_mut(), whole, ..).unwrap();
        gst::ParentBufferMeta::add(buffer.make_mut(), &pooled);
        let b = buffer.make_mut();
        b.set_pts(FRAME * k);
        b.set_offset(k);
        drop(pooled);
        rig.push(buffer).unwrap();
    }
    rig.eos();
    assert_eq!(rig.offsets(), (0..70).collect::<Vec<_>>());
    pool.set_active(false).unwrap();
}

/// A sink with a pool of two buffers that it gives back as they are shown.
#[test]
fn a_small_downstream_pool_does_not_stop_a_burst() {
    init();
    let pipeline = gst::Pipeline::new();
    let src =
        gst::ElementFactory::make("videotestsrc").property("num-buffers", 40i32).build().unwrap();
    let filter = gst::ElementFactory::make("capsfilter")
        .property("caps", CAPS.parse::<gst::Caps>().unwrap())
        .build()
        .unwrap();
    let starsr = starsr(16, 2);
    let sink = gst::ElementFactory::make("fakesink").build().unwrap();
    pipeline.add_many([&src, &filter, &starsr, &sink]).unwrap();
    gst::Element::link_many([&src, &filter, &starsr, &sink]).unwrap();
    let pool = gst_video::VideoBufferPool::new();
    let offered = pool.clone();
    sink.static_pad("sink").unwrap().add_probe(
        gst::PadProbeType::QUERY_DOWNSTREAM,
        move |_, info| {
            if let Some(query) = info.query_mut()
                && let gst::QueryViewMut::Allocation(query) = query.view_mut()
            {
                let (caps, _) = query.get_owned();
                let size = gst_video::VideoInfo::from_caps(&caps.unwrap()).unwrap().size();
                query.add_allocation_pool(Some(&offered), size as u32, 2, 2);
                return gst::PadProbeReturn::Handled;
            }
            gst::PadProbeReturn::Ok
        },
    );
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (counter, ours) = (seen.clone(), pool.clone());
    sink.static_pad("sink").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        assert!(ours.is_active(), "the sink's pool is not used");
        counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        gst::PadProbeReturn::Ok
    });
    super::pipelines::run(&pipeline);
    assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), 40);
}

#[test]
fn padded_strides_are_read_and_written() {
    let rig = Rig::new(starsr(2, 0), None);
    rig.start(CAPS);
    let expected = bytes(&textured_frame(0));
    let (stride, luma) = (24usize, 24 * 8);
    let offsets = [0, luma, luma + 16 * 4];
    let strides = [stride as i32, 16, 16];
    let mut padded = vec![255u8; luma + 2 * 16 * 4];
    for (plane, (width, height)) in [(16, 8), (8, 4), (8, 4)].into_iter().enumerate() {
        let from = [0, 128, 160][plane];
        for y in 0..height {
            let to = offsets[plane] + y * strides[plane] as usize;
            padded[to..to + width].copy_from_slice(&expected[from + y * width..][..width]);
        }
    }
    let mut buffer = gst::Buffer::from_mut_slice(padded);
    gst_video::VideoMeta::add_full(
        buffer.make_mut(),
        gst_video::VideoFrameFlags::empty(),
        gst_video::VideoFormat::I420,
        16,
        8,
        &offsets,
        &strides,
    )
    .unwrap();
    rig.push(buffer).unwrap();
    rig.push(textured_frame(0)).unwrap();
    rig.eos();
    let buffers = rig.buffers();
    assert_eq!(bytes(&buffers[0]), bytes(&buffers[1]));
}

/// A video meta is upstream's word only: GStreamer itself would read wherever it points.
#[test]
fn planes_outside_the_buffer_are_an_error() {
    type Layout = (gst_video::VideoFormat, (u32, u32), [usize; 3], [i32; 3]);
    let right: Layout = (gst_video::VideoFormat::I420, (16, 8), [0, 128, 160], [16, 8, 8]);
    let wrong: [(&str, Layout); 7] = [
        ("plane 0", (right.0, right.1, [1 << 40, 128, 160], right.3)),
        ("plane 2", (right.0, right.1, [0, 128, 161], right.3)),
        ("plane 1", (right.0, right.1, right.2, [16, 1 << 20, 8])),
        ("plane 0", (right.0, right.1, right.2, [-16, 8, 8])),
        ("16x7", (right.0, (16, 7), right.2, right.3)),
        ("15x8", (right.0, (15, 8), right.2, right.3)),
        ("Y42B", (gst_video::VideoFormat::Y42b, right.1, right.2, right.3)),
    ];
    // The first plane upside down and the last one without the end of its last line, which nobody
    // reads.
    let unusual = (right.0, right.1, [112, 128, 160], [-16, 8, 9]);
    for (word, (format, (width, height), offsets, strides)) in wrong
        .into_iter()
        .map(|(word, layout)| (Some(word), layout))
        .chain([(None, right), (None, unusual)])
    {
        let rig = Rig::new(starsr(1, 0), None);
        rig.start(CAPS);
        let mut buffer =
            gst::Buffer::from_mut_slice(vec![90u8; if strides[2] == 9 { 195 } else { 192 }]);
        let (b, flags) = (buffer.make_mut(), gst_video::VideoFrameFlags::empty());
        gst_video::VideoMeta::add_full(b, flags, format, width, height, &offsets, &strides)
            .unwrap();
        let (flow, errors) = (rig.push(buffer), rig.errors());
        match word {
            None => {
                assert_eq!(
                    (flow, rig.buffers().len()),
                    (Ok(gst::FlowSuccess::Ok), 1),
                    "{errors:?}"
                );
            }
            Some(word) => {
                assert_eq!(flow, Err(gst::FlowError::Error), "{word}");
                assert!(errors.len() == 1 && errors[0].contains(word), "{word}: {errors:?}");
            }
        }
    }
    // The caps show the upper left part of a larger frame.
    let rig = Rig::new(starsr(1, 0), None);
    rig.start(CAPS);
    let mut larger = gst::Buffer::from_mut_slice(
        (0..768).map(|i| if i < 512 && i % 32 < 16 { 90 } else { 128 }).collect::<Vec<u8>>(),
    );
    let (b, flags) = (larger.make_mut(), gst_video::VideoFrameFlags::empty());
    gst_video::VideoMeta::add_full(b, flags, right.0, 32, 16, &[0, 512, 640], &[32, 16, 16])
        .unwrap();
    rig.push(larger).unwrap();
    rig.push(gst::Buffer::from_mut_slice([vec![90; 128], vec![128; 64]].concat())).unwrap();
    let [larger, plain] = &rig.buffers()[..] else { panic!("{:?}", rig.errors()) };
    assert!(larger.size() == 64 * 32 * 3 / 2 && bytes(larger) == bytes(plain));
    // Fewer planes than the format has, and planes in memories of their own, of which one is short.
    let rig = Rig::new(starsr(1, 0), None);
    rig.start(CAPS);
    for (planes, sizes, right) in
        [(2, [128, 32, 32], false), (3, [128, 32, 31], false), (3, [128, 32, 32], true)]
    {
        let mut buffer = gst::Buffer::new();
        let (b, flags) = (buffer.make_mut(), gst_video::VideoFrameFlags::empty());
        for size in sizes {
            b.append_memory(gst::Memory::from_mut_slice(vec![90u8; size]));
        }
        let (offsets, strides) = (&[0, 128, 160][..planes], &[16, 8, 8][..planes]);
        gst_video::VideoMeta::add_full(
            b,
            flags,
            gst_video::VideoFormat::I420,
            16,
            8,
            offsets,
            strides,
        )
        .unwrap();
        assert_eq!(
            rig.push(buffer).is_ok(),
            right,
            "{planes} planes of {sizes:?}: {:?}",
            rig.errors()
        );
    }
}

#[test]
fn each_frame_keeps_its_metas_scaled() {
    let rig = Rig::started(8, 2);
    for k in 0..10 {
        let mut buffer = frame(k);
        if k == 3 {
            let b = buffer.make_mut();
            gst_video::VideoRegionOfInterestMeta::add(b, "face", (2, 1, 6, 4));
            gst_video::VideoBarMeta::add(b, 0, true, 1, 7);
            gst_video::VideoBarMeta::add(b, 0, false, 2, 14);
            gst_video::VideoCropMeta::add(b, (1, 1, 8, 4));
            gst_video::VideoAFDMeta::add(
                b,
                0,
                gst_video::VideoAFDSpec::AtscA53,
                gst_video::VideoAFDValue::_43Full169Full,
            );
            gst_video::VideoCaptionMeta::add(b, gst_video::VideoCaptionType::Cea708Raw, b"words");
            let reference = gst::Caps::new_empty_simple("timestamp/x-test");
            gst::ReferenceTimestampMeta::add(
                b,
                &reference,
                gst::ClockTime::from_seconds(5),
                gst::ClockTime::NONE,
            );
        }
        rig.push(buffer).unwrap();
    }
    rig.eos();
    for (k, buffer) in rig.buffers().iter().enumerate() {
        let regions: Vec<_> = buffer
            .iter_meta::<gst_video::VideoRegionOfInterestMeta>()
            .map(|m| (m.roi_type().to_string(), m.rect()))
            .collect();
        let bars: Vec<_> = buffer
            .iter_meta::<gst_video::VideoBarMeta>()
            .map(|m| (m.is_letterbox(), m.bar_data1(), m.bar_data2()))
            .collect();
        let crops: Vec<_> =
            buffer.iter_meta::<gst_video::VideoCropMeta>().map(|m| m.rect()).collect();
        let captions = buffer
            .iter_meta::<gst_video::VideoCaptionMeta>()
            .filter(|m| m.data() == b"words")
            .count();
        let afds = buffer.iter_meta::<gst_video::VideoAFDMeta>().count();
        let times = buffer.iter_meta::<gst::ReferenceTimestampMeta>().count();
        if k == 3 {
            assert_eq!(regions, [("face".to_string(), (8, 4, 24, 16))]);
            assert_eq!(bars, [(true, 4, 28), (false, 8, 56)]);
            assert_eq!(crops, [(4, 4, 32, 16)]);
            assert_eq!((captions, afds, times), (1, 1, 1));
        } else {
            assert!(regions.is_empty() && bars.is_empty() && crops.is_empty(), "frame {k}");
            assert_eq!((captions, afds, times), (0, 0, 0), "frame {k}");
        }
    }
}
