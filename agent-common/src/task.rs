//! Tasks of a server's engine.

use crate::plain;

/// Names a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TaskKey {
    /// The process.
    pub tgid: u32,
    /// The server's task id.
    pub task: i32,
}

plain!(TaskKey = 8);
