//! Role task: the thread that serves a connection announces the engine tasks it waits for. That is the exact join
//! from a socket to the engine.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    loss::Loss,
    request::{RequestEventKind, RequestKey, TaskEvent},
    task::TaskKey,
};

use super::{now, observe};
use crate::{
    arguments::read,
    connections::{lost_event, served},
    maps::{REQUEST_EVENTS, TASKS},
    target::Target,
};

/// Tasks of one request that are followed (`n` choices, prompts in an array).
const MAX_TASKS: usize = 32;
/// The first list node of a `std::unordered_set` (libstdc++), and the value in a node of one of `int`.
const FIRST_NODE: u64 = 16;
const NODE_VALUE: u64 = 8;

/// `server_response::add_waiting_task_id(int)`
#[uprobe]
fn lp_task(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let now = now();
        let Some(request) = served(target, now) else { return Ok(()) };
        wait(target, request, call.get(1)? as i32, now)
    })
}

/// `server_response::add_waiting_task_ids(std::unordered_set<int> const &)`
#[uprobe]
fn lp_tasks(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let now = now();
        // A thread of the server that serves no connection waits for tasks of its own.
        let Some(request) = served(target, now) else { return Ok(()) };
        let mut node = read::<u64>(call.get(1)? + FIRST_NODE)?;
        for _ in 0..MAX_TASKS {
            if node == 0 {
                return Ok(());
            }
            wait(target, request, read::<i32>(node + NODE_VALUE)?, now)?;
            node = read::<u64>(node)?;
        }
        Err(Loss::TasksFull)
    })
}

#[inline(always)]
fn wait(target: &Target, request: RequestKey, task: i32, now: u64) -> Result<(), Loss> {
    let key = TaskKey { tgid: target.tgid, task };
    TASKS.insert(key, request, 0).map_err(|_| Loss::TasksFull)?;
    let Some(mut entry) = REQUEST_EVENTS.reserve::<TaskEvent>(0) else {
        lost_event(target, &request);
        return Ok(());
    };
    entry.write(TaskEvent { kind: RequestEventKind::Task as u32, task, request, at_ns: now });
    entry.submit(0);
    Ok(())
}
