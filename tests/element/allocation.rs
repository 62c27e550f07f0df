// SPDX-License-Identifier: MPL-2.0

//! Who allocates what: answers to upstream, and pools of downstream.

use std::sync::{Arc, Mutex};

use gst::prelude::*;
use gst_video::prelude::*;

use starsr_testkit::rig::*;

fn info(caps: &str) -> gst_video::VideoInfo {
    gst_video::VideoInfo::from_caps(&caps.parse::<gst::Caps>().unwrap()).unwrap()
}

/// Size, least and most buffers of the pool that upstream is offered for `caps`, which works, and
/// whether video metas are understood.
fn offered(rig: &Rig, caps: &str) -> (u32, u32, u32, bool) {
    let caps: gst::Caps = caps.parse().unwrap();
    let mut query = gst::query::Allocation::new(Some(&caps), true);
    assert!(rig.src.peer_query(&mut query));
    let metas = query.find_allocation_meta::<gst_video::VideoMeta>().is_some();
    let (pool, size, min, max) = query.allocation_pools().next().expect("no pool is offered");
    let pool = pool.expect("a size without a pool");
    let mut config = pool.config();
    config.set_params(Some(&caps), size, min, max);
    pool.set_config(config).unwrap();
    pool.set_active(true).unwrap();
    assert_eq!(pool.acquire_buffer(None).unwrap().size() as u32, size);
    pool.set_active(false).unwrap();
    (size, min, max, metas)
}

#[test]
fn upstream_is_offered_a_pool_that_fits() {
    let rig = Rig::started(8, 2);
    let wide = CAPS.replace("width=16", "width=34").replace("I420", "NV12");
    for caps in [CAPS, wide.as_str(), CAPS] {
        rig.caps(caps);
        // Frames in are smaller than frames out, and no number of them is needed.
        assert_eq!(offered(&rig, caps), (info(caps).size() as u32, 0, 0, true));
        rig.push(gst::Buffer::with_size(info(caps).size()).unwrap()).unwrap();
    }
    rig.eos();
    assert_eq!(rig.buffers().len(), 3);
}

fn padding(right: u32, bottom: u32, align: u32) -> gst_video::VideoAlignment {
    gst_video::VideoAlignment::new(1, bottom, 3, right, &[align; 4])
}

/// A pool of frames with margins, as decoders and displays want them.
fn padded_pool(
    caps: &gst::Caps,
    min: u32,
    max: u32,
    alignment: &gst_video::VideoAlignment,
) -> (gst::BufferPool, u32) {
    let pool = gst_video::VideoBufferPool::new();
    let mut config = pool.config();
    config.set_params(
        Some(caps),
        gst_video::VideoInfo::from_caps(caps).unwrap().size() as u32,
        min,
        max,
    );
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT);
    config.set_video_alignment(alignment);
    pool.set_config(config).unwrap();
    let size = pool.config().params().unwrap().1;
    (pool.upcast(), size)
}

/// Upstream has three buffers with margins, and never waits for one.
#[test]
fn a_small_padded_pool_of_upstream_does_not_run_dry() {
    let rig = Rig::new(starsr(16, 4), None);
    rig.start(CAPS);
    let (pool, _) = padded_pool(&CAPS.parse().unwrap(), 3, 3, &padding(21, 5, 31));
    pool.set_active(true).unwrap();
    let now = gst::BufferPoolAcquireParams::with_flags(gst::BufferPoolAcquireFlags::DONTWAIT);
    for k in 0..50 {
        let mut buffer =
            pool.acquire_buffer(Some(&now)).unwrap_or_else(|_| panic!("no buffer for frame {k}"));
        let b = buffer.make_mut();
        b.set_pts(FRAME * k);
        b.set_offset(k);
        assert!(b.meta::<gst_video::VideoMeta>().unwrap().stride()[0] > 16 + 20);
        let mut to = gst_video::VideoFrameRef::from_buffer_ref_writable(b, &info(CAPS)).unwrap();
        let from = frame(k);
        let from = gst_video::VideoFrameRef::from_buffer_ref_readable(&from, &info(CAPS)).unwrap();
        from.copy(&mut to).unwrap();
        drop(to);
        rig.push(buffer).unwrap();
    }
    rig.eos();
    assert_eq!(rig.offsets(), (0..50).collect::<Vec<_>>());
    for (k, buffer) in (0..).zip(rig.buffers()) {
        assert!(bytes(&buffer)[..64 * 32].iter().all(|y| y.abs_diff(level(k)) <= 1), "frame {k}");
    }
    pool.set_active(false).unwrap();
}

/// A frame as it came: caps, size of its buffer, the first line's stride, the pool that owns it,
/// its middle pixel.
struct Came {
    offset: u64,
    stride: i32,
    size: usize,
    pool: *mut gst::ffi::GstBufferPool,
    middle: u8,
}
// SAFETY: the pool is only compared.
unsafe impl Send for Came {}

/// The caps that downstream was asked for, and its pool for them.
type Asked = (gst::Caps, Option<gst::BufferPool>);

type Noted<T> = Arc<Mutex<Vec<T>>>;

/// Makes downstream answer allocation queries by `answer`, and look at frames without keeping any.
fn downstream(
    rig: &Rig,
    answer: impl Fn(&gst::Caps, &mut gst::query::Allocation) -> Option<gst::BufferPool>
    + Send
    + Sync
    + 'static,
) -> (Noted<Asked>, Noted<Came>) {
    let (asked, came) = (Noted::default(), Noted::default());
    let to = asked.clone();
    rig.sink.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, move |_, probe| {
        if let Some(query) = probe.query_mut()
            && let gst::QueryViewMut::Allocation(query) = query.view_mut()
        {
            let caps = query.get_owned().0.unwrap();
            let pool = answer(&caps, query);
            to.lock().unwrap().push((caps, pool));
            return gst::PadProbeReturn::Handled;
        }
        gst::PadProbeReturn::Ok
    });
    let to = came.clone();
    rig.sink.add_probe(gst::PadProbeType::BUFFER, move |pad, probe| {
        let Some(gst::PadProbeData::Buffer(buffer)) = probe.data.take() else {
            panic!("no buffer")
        };
        let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(&buffer, &info).unwrap();
        let stride = frame.plane_stride()[0];
        let at = info.height() as usize / 2 * stride as usize + info.width() as usize / 2;
        // SAFETY: the buffer is alive.
        let pool = unsafe { (*buffer.as_ptr()).pool };
        let middle = frame.plane_data(0).unwrap()[at];
        to.lock().unwrap().push(Came {
            offset: buffer.offset(),
            stride,
            size: buffer.size(),
            pool,
            middle,
        });
        probe.flow_res = Ok(gst::FlowSuccess::Ok);
        gst::PadProbeReturn::Handled
    });
    (asked, came)
}

/// A pool of two buffers with margins, of which downstream keeps none, and windows of sixteen
/// frames.
#[test]
fn the_pool_of_downstream_is_used_as_it_is() {
    for (min, max) in [(0, 0), (2, 2), (1, 2), (0, 1)] {
        let rig = Rig::new(starsr(16, 2), None);
        let (asked, came) = downstream(&rig, move |caps, query| {
            let (pool, size) = padded_pool(caps, min, max, &padding(17, 3, 63));
            query.add_allocation_pool(Some(&pool), size, min, max);
            query.add_allocation_meta::<gst_video::VideoMeta>(None);
            Some(pool)
        });
        rig.start(CAPS);
        rig.push_all(0..40);
        // Other caps, another pool.
        let wide = CAPS.replace("width=16,height=8", "width=32,height=8");
        rig.caps(&wide);
        for k in 40..60 {
            let mut buffer =
                gst::Buffer::from_mut_slice([vec![level(k); 256], vec![128; 128]].concat());
            let b = buffer.make_mut();
            b.set_pts(FRAME * k);
            b.set_offset(k);
            rig.push(buffer).unwrap();
        }
        rig.eos();
        let (asked, came) = (asked.lock().unwrap(), came.lock().unwrap());
        let widths: Vec<_> = asked
            .iter()
            .map(|(caps, _)| caps.structure(0).unwrap().get::<i32>("width").unwrap())
            .collect();
        assert_eq!(widths, [64, 128], "{min} to {max}");
        assert_eq!(came.len(), 60, "{min} to {max}");
        for (k, frame) in (0..).zip(came.iter()) {
            let (caps, pool) = &asked[usize::from(k >= 40)];
            assert_eq!(frame.offset, k);
            assert_eq!(
                frame.pool,
                pool.as_ref().unwrap().as_ptr(),
                "frame {k} is not from the pool"
            );
            let tight = gst_video::VideoInfo::from_caps(caps).unwrap();
            assert!(
                frame.stride > tight.stride()[0] && frame.stride % 64 == 0,
                "frame {k}: {}",
                frame.stride
            );
            assert!(frame.size > tight.size());
            assert!(frame.middle.abs_diff(level(k)) <= 1, "frame {k}");
        }
    }
}

/// Downstream that says nothing, that has a size but no pool, and that knows no video metas: frames
/// are laid out as caps say.
#[test]
fn without_video_metas_downstream_gets_the_plain_layout() {
    for kind in 0..3 {
        let rig = Rig::new(starsr(4, 1), None);
        let (asked, came) = downstream(&rig, move |caps, query| {
            let size = gst_video::VideoInfo::from_caps(caps).unwrap().size() as u32;
            match kind {
                0 => {}
                1 => query.add_allocation_pool(gst::BufferPool::NONE, size, 2, 0),
                _ => {
                    let pool = gst_video::VideoBufferPool::new();
                    query.add_allocation_pool(Some(&pool), size, 0, 0);
                }
            }
            None
        });
        // 22 pixels need lines of 24 bytes in the plain layout; those of the input are longer
        // still.
        let caps = CAPS.replace("width=16,height=8", "width=22,height=10");
        rig.start(&caps);
        for k in 0..9 {
            rig.push(scattered(k)).unwrap();
        }
        rig.eos();
        let plain = gst_video::VideoInfo::from_caps(&asked.lock().unwrap()[0].0).unwrap();
        let came = came.lock().unwrap();
        assert_eq!(came.len(), 9);
        for (k, frame) in (0..).zip(came.iter()) {
            assert_eq!(
                (frame.offset, frame.size, frame.stride),
                (k, plain.size(), plain.stride()[0]),
                "kind {kind}"
            );
            assert!(frame.middle.abs_diff(level(k)) <= 1, "frame {k}");
        }
    }
}

/// An even grey of 22x10 whose planes are memories of their own, in another order, with margins
/// that are bright.
fn scattered(k: u64) -> gst::Buffer {
    let mut buffer = gst::Buffer::new();
    let b = buffer.get_mut().unwrap();
    b.set_pts(FRAME * k);
    b.set_offset(k);
    let plane = |value: u8, width: usize, stride: usize, height: usize, before: usize| {
        let mut bytes = vec![255; before];
        for _ in 0..height {
            bytes.extend(std::iter::repeat_n(value, width));
            bytes.extend(std::iter::repeat_n(255, stride - width));
        }
        gst::Memory::from_slice(bytes)
    };
    // V, Y, U.
    let memories =
        [plane(128, 11, 13, 5, 7), plane(level(k), 22, 37, 10, 3), plane(128, 11, 29, 5, 0)];
    let ends: Vec<usize> = memories
        .iter()
        .scan(0, |end, memory| {
            *end += memory.size();
            Some(*end)
        })
        .collect();
    for memory in memories {
        b.append_memory(memory);
    }
    let offsets = [ends[0] + 3, ends[1], 7];
    gst_video::VideoMeta::add_full(
        b,
        gst_video::VideoFrameFlags::empty(),
        gst_video::VideoFormat::I420,
        22,
        10,
        &offsets,
        &[37, 29, 13],
    )
    .unwrap();
    buffer
}
