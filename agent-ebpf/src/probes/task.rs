//! Role task: the thread that serves a connection announces the engine tasks it waits for. That is the exact join
//! from a socket to the engine.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{loss::Loss, request::RequestKey, task::TaskKey};
use llamaprobe_core::{
    exchange::{served, tell_task},
    process::{Counters as _, Process as _},
};

use super::{now, observe, resume};
use crate::{
    connections::LINKS,
    machine::{Helpers, read},
    maps::{FOLLOW, FOLLOW_TASKS, TASK_WALKS, TASKS},
    target::Target,
};

/// Tasks that one program takes down. What remains goes on in a tail call, of which the kernel allows 33: that is 4,352
/// tasks of one request (`n` choices, prompts in an array).
const TASKS_AT_ONCE: usize = 128;
/// The first list node of a `std::unordered_set` (libstdc++), and the value in a node of one of `int`.
const FIRST_NODE: u64 = 16;
const NODE_VALUE: u64 = 8;

/// `server_response::add_waiting_task_id(int)`
#[uprobe]
fn lp_task(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let now = now();
        let Some(request) = served(target, &mut { LINKS }, now) else { return Ok(()) };
        note(target, call.get(1)? as i32, &request, (now, target.freed_ns()))
    })
}

/// `server_response::add_waiting_task_ids(std::unordered_set<int> const &)`
#[uprobe]
fn lp_tasks(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let first = read::<u64>(call.get(1)? + FIRST_NODE)?;
        walk(&probe, target, first)
    })
}

/// Continues `lp_tasks`; not attached anywhere.
#[uprobe]
fn lp_tasks_on(probe: ProbeContext) -> u32 {
    resume(&probe, |target, _, _| {
        let thread = bpf_get_current_pid_tgid();
        // SAFETY: the entry is written and read by this thread only.
        let node = unsafe { TASK_WALKS.get(thread) }.copied().ok_or(Loss::TasksFull)?;
        let _ = TASK_WALKS.remove(thread);
        walk(&probe, target, node)
    })
}

/// Takes down the tasks from a list node on.
#[inline(always)]
fn walk(probe: &ProbeContext, target: &Target, mut node: u64) -> Result<(), Loss> {
    let now = now();
    // A thread of the server that serves no connection waits for tasks of its own.
    let Some(request) = served(target, &mut { LINKS }, now) else { return Ok(()) };
    let times = (now, target.freed_ns());
    for _ in 0..TASKS_AT_ONCE {
        if node == 0 {
            return Ok(());
        }
        let task = read::<i32>(node + NODE_VALUE)?;
        if let Err(loss) = note(target, task, &request, times) {
            target.lose(loss);
        }
        node = read::<u64>(node)?;
    }
    if node == 0 {
        return Ok(());
    }
    TASK_WALKS.insert(bpf_get_current_pid_tgid(), node, 0).map_err(|_| Loss::TasksFull)?;
    // SAFETY: the map holds a program of the same type.
    unsafe { FOLLOW.tail_call(probe, FOLLOW_TASKS) };
    Err(Loss::TasksFull)
}

/// A task is a request's.
#[inline(always)]
fn note(target: &Target, task: i32, request: &RequestKey, times: (u64, u64)) -> Result<(), Loss> {
    let key = TaskKey { tgid: target.tgid, task };
    TASKS.insert(key, request, 0).map_err(|_| Loss::TasksFull)?;
    tell_task(target, &mut Helpers, task, request, times);
    Ok(())
}
