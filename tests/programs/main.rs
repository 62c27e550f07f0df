// SPDX-License-Identifier: MPL-2.0

//! Applications of the element: the examples, run as their users run them, and the pipelines of the
//! documentation. Needs the plugin, ONNX Runtime and the examples beside the test's executable:
//! `make build`.

mod c;
mod embed;
mod live;
mod python;
mod queues;
mod rig;
