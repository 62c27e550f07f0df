// SPDX-License-Identifier: MPL-2.0

//! Windows end at cuts.

use gst::prelude::*;
use gst_video::prelude::*;
use ndarray::Array3;
use starsr::scene::SceneDetector;

use super::pipelines;
use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

/// The first frames of the scenes of `hr/bikes.mp4`, found by looking at all of its 250 frames.
const CUTS_OF_BIKES: [usize; 5] = [30, 76, 137, 187, 242];

/// Frame `k` of a picture that belongs to `scene` and does not move, for [`CAPS`].
fn scene_frame(scene: u64, k: u64) -> gst::Buffer {
    let mut buffer = frame(k);
    let mut map = buffer.make_mut().map_writable().unwrap();
    for (i, value) in map[..16 * 8].iter_mut().enumerate() {
        let (x, y) = (i as u64 % 16, i as u64 / 16);
        *value = if (x >> scene & 1) ^ (y >> scene & 1) == 1 { 200 } else { 60 };
    }
    drop(map);
    buffer
}

fn rig(detect: bool) -> Rig {
    let element = starsr(8, 2);
    element.set_property("scene-detection", detect);
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    rig
}

#[track_caller]
fn check_out(rig: &Rig, count: u64) {
    assert_eq!(rig.offsets(), (0..count).collect::<Vec<_>>());
}

#[test]
fn a_cut_lets_the_scene_before_out_and_starts_new_windows() {
    let rig = rig(true);
    for k in 0..11 {
        rig.push(scene_frame(0, k)).unwrap();
    }
    check_out(&rig, 6);
    rig.push(scene_frame(1, 11)).unwrap();
    check_out(&rig, 11);
    for k in 12..16 {
        rig.push(scene_frame(1, k)).unwrap();
    }
    check_out(&rig, 12);
    rig.eos();
    check_out(&rig, 16);
    // Windows start every six frames and at the cut: 0 to 8, 6 to 11, 11 to 14, 12 to 16.
    assert_eq!((rig.stat("scene-cuts"), rig.stat("windows")), (1, 4));
    assert!(rig.buffers().iter().all(|b| b.pts() == Some(FRAME * b.offset())));
}

#[test]
fn cuts_can_be_ignored() {
    let rig = rig(false);
    for k in 0..8 {
        rig.push(scene_frame(k / 4, k)).unwrap();
    }
    check_out(&rig, 6);
    rig.eos();
    assert_eq!((rig.stat("scene-cuts"), rig.stat("windows")), (0, 1));
}

/// What a scene becomes does not depend on the one before it.
#[test]
fn no_scene_shows_in_another() {
    let restored = |first_scene: Option<u64>| -> Vec<Vec<u8>> {
        let element = starsr(8, 2);
        element.set_property("scene-detection", true);
        element.set_property("strength", 1.0f32);
        let rig = Rig::new(element, None);
        rig.event(gst::event::StreamStart::new("test"));
        rig.caps(CAPS);
        rig.segment(gst::ClockTime::ZERO);
        if let Some(scene) = first_scene {
            for k in 0..5 {
                rig.push(scene_frame(scene, k)).unwrap();
            }
        }
        for k in 5..17 {
            rig.push(scene_frame(0, k)).unwrap();
        }
        rig.eos();
        rig.buffers().iter().filter(|b| b.offset() >= 5).map(|b| bytes(b)).collect()
    };
    let alone = restored(None);
    assert_eq!(alone.len(), 12);
    for scene in [1, 2] {
        assert!(restored(Some(scene)) == alone, "scene {scene} shows in the next");
    }
    // The same scene before does show: the model looks at neighbouring frames.
    assert!(restored(Some(0)) != alone);
}

#[test]
fn the_event_cuts_before_the_next_frame_and_goes_on() {
    for detect in [true, false] {
        let rig = rig(detect);
        for k in 0..3 {
            rig.push(scene_frame(0, k)).unwrap();
        }
        rig.event(gst::event::CustomDownstream::new(gst::Structure::new_empty("starsr-scene-cut")));
        check_out(&rig, 3);
        for k in 3..6 {
            rig.push(scene_frame(1, k)).unwrap();
        }
        rig.eos();
        check_out(&rig, 6);
        assert_eq!((rig.stat("scene-cuts"), rig.stat("windows")), (1, 2));
        let labels = rig.labels();
        let start = labels.iter().position(|l| l == "0").unwrap();
        assert_eq!(labels[start..], ["0", "1", "2", "starsr-scene-cut", "3", "4", "5", "eos"]);
    }
}

#[test]
fn the_frame_that_cuts_gets_the_failure_of_downstream() {
    let rig = rig(true);
    for k in 0..4 {
        rig.push(scene_frame(0, k)).unwrap();
    }
    rig.set_flow(Err(gst::FlowError::Error));
    assert_eq!(rig.push(scene_frame(1, 4)), Err(gst::FlowError::Error));
    assert!(rig.errors().is_empty());
}

/// Every frame of a file as the detector takes it.
fn cuts_of(path: &std::path::Path) -> (usize, Vec<usize>) {
    init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location=\"{}\" ! decodebin ! videoconvert ! video/x-raw,format=RGB ! fakesink name=f",
        path.display()
    ));
    let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
    let found =
        std::sync::Arc::new(std::sync::Mutex::new((0, Vec::new(), SceneDetector::default())));
    let to = found.clone();
    let pad = pipeline.by_name("f").unwrap().static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let info_of = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
        let frame =
            gst_video::VideoFrameRef::from_buffer_ref_readable(info.buffer().unwrap(), &info_of)
                .unwrap();
        let (stride, data) = (frame.plane_stride()[0] as usize, frame.plane_data(0).unwrap());
        let size = (3, info_of.height() as usize, info_of.width() as usize);
        let pixels = Array3::from_shape_fn(size, |(c, y, x)| {
            f32::from(data[y * stride + 3 * x + c]) / 255.0
        });
        let (frames, cuts, detector) = &mut *to.lock().unwrap();
        if detector.is_cut(pixels.view()) {
            cuts.push(*frames);
        }
        *frames += 1;
        gst::PadProbeReturn::Ok
    });
    pipelines::run(&pipeline);
    let found = found.lock().unwrap();
    (found.0, found.1.clone())
}

#[test]
fn the_cuts_of_real_clips_are_found_and_no_others() {
    let Some(bikes) = fixtures::media("hr/bikes.mp4") else { return };
    assert_eq!(cuts_of(&bikes), (250, CUTS_OF_BIKES.to_vec()));
    // None of these has a cut, seen by eye.
    let real =
        fixtures::media("real").into_iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let clips = real
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "mp4"));
    for clip in clips.chain(fixtures::media("hr/carphone_pristine.mp4")) {
        let (frames, cuts) = cuts_of(&clip);
        assert!(frames > 20 && cuts.is_empty(), "{}: {cuts:?} of {frames}", clip.display());
    }
}

/// Grey and small, as a decoder might give it.
#[test]
fn a_file_with_cuts_loses_no_frame() {
    let Some(bikes) = fixtures::media("hr/bikes.mp4") else { return };
    let p = pipelines::pipeline(&format!(
        "filesrc location=\"{}\" ! decodebin ! videoscale ! video/x-raw,width=80,height=34 ! starsr scene-detection=true ! \
         fakesink name=f",
        bikes.display()
    ));
    let (entered, left) = (pipelines::watch(&p, "s", "sink"), pipelines::watch(&p, "f", "sink"));
    let stat = |field: &str| {
        p.by_name("s").unwrap().property::<gst::Structure>("stats").get::<u64>(field).unwrap()
    };
    pipelines::run_with(&p, || {
        // Of the windows of eight frames that start every six, those that lie in the scenes, in
        // part or as a whole.
        assert_eq!((stat("scene-cuts"), stat("windows")), (5, 5 + 8 + 11 + 9 + 9 + 2));
    });
    assert_eq!(pipelines::times(&entered).len(), 250);
    assert_eq!(pipelines::times(&entered), pipelines::times(&left));
}
