// SPDX-License-Identifier: MPL-2.0

//! Metas that the base class does not carry over because they depend on the frame's size.

/// Puts a copy of `meta`, scaled from `from` to `to`, on `outbuf` where its kind can be scaled.
pub(super) fn scale(
    meta: &gst::MetaRef<'_, gst::Meta>,
    outbuf: &mut gst::BufferRef,
    from: &gst_video::VideoInfo,
    to: &gst_video::VideoInfo,
) {
    // Says nothing about pixels that the output does not say itself.
    if meta.downcast_ref::<gst_video::VideoMeta>().is_some() {
        return;
    }
    if let Some(bar) = meta.downcast_ref::<gst_video::VideoBarMeta>() {
        // Until GStreamer 1.24 this meta cannot scale itself. Bars count lines (letterbox) or columns (pillarbox).
        let (from, to) =
            if bar.is_letterbox() { (from.height(), to.height()) } else { (from.width(), to.width()) };
        let scaled = |v: u32| {
            let scaled = (u64::from(v) * u64::from(to) + u64::from(from) / 2) / u64::from(from.max(1));
            u32::try_from(scaled).unwrap_or(u32::MAX)
        };
        let (first, second) = (scaled(bar.bar_data1()), scaled(bar.bar_data2()));
        gst_video::VideoBarMeta::add(outbuf, bar.field(), bar.is_letterbox(), first, second);
        return;
    }
    // A refusal means that the meta cannot be scaled; then it must not describe the output.
    let _ = meta.transform(outbuf, &gst_video::video_meta::VideoMetaTransformScale::new(from, to));
}
