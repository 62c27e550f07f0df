// SPDX-License-Identifier: MPL-2.0

//! Everything of a buffer except its memory, and the metas that the base class does not carry over
//! because they depend on the frame's size.

use gst::glib;

/// Everything of `buffer` except its memory. The copy is deep: a shallow one would also copy the
/// reference to the buffer that owns the memory, and upstream's pool would run dry.
pub(super) fn skeleton(buffer: &gst::BufferRef) -> Result<gst::Buffer, glib::BoolError> {
    let flags = gst::BufferCopyFlags::FLAGS
        | gst::BufferCopyFlags::TIMESTAMPS
        | gst::BufferCopyFlags::META
        | gst::BufferCopyFlags::DEEP;
    let mut skeleton = gst::Buffer::new();
    buffer.copy_into(skeleton.make_mut(), flags, ..)?;
    Ok(skeleton)
}

/// Puts a copy of `meta`, scaled from `from` to `to`, on `outbuf`. Metas that cannot be scaled are
/// left out.
pub(super) fn scale(
    meta: &gst::MetaRef<'_, gst::Meta>,
    outbuf: &mut gst::BufferRef,
    from: &gst_video::VideoInfo,
    to: &gst_video::VideoInfo,
) {
    // The output buffer has its own.
    if meta.downcast_ref::<gst_video::VideoMeta>().is_some() {
        return;
    }
    if let Some(bar) = meta.downcast_ref::<gst_video::VideoBarMeta>() {
        // Until GStreamer 1.24 this meta cannot scale itself. Bars count lines (letterbox) or
        // columns (pillarbox).
        let (from, to) = if bar.is_letterbox() {
            (from.height(), to.height())
        } else {
            (from.width(), to.width())
        };
        let scaled = |v: u32| {
            let scaled =
                (u64::from(v) * u64::from(to) + u64::from(from) / 2) / u64::from(from.max(1));
            u32::try_from(scaled).unwrap_or(u32::MAX)
        };
        let (first, second) = (scaled(bar.bar_data1()), scaled(bar.bar_data2()));
        gst_video::VideoBarMeta::add(outbuf, bar.field(), bar.is_letterbox(), first, second);
        return;
    }
    // It fails for a meta that cannot be scaled, which then must not describe the output.
    let _ = meta.transform(outbuf, &gst_video::video_meta::VideoMetaTransformScale::new(from, to));
}
