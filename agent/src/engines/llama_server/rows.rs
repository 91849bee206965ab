//! What is hooked of the server's own functions.

use llamaprobe_common::{cookie::TokenLayout::Slot, probe::ProbeId};

use crate::engines::catalog::{
    Layout::{Plain, Token},
    Name::{Exact, Prefix},
    Program, Row, row,
};

/// The rows.
pub(super) static ROWS: &[Row] = &[
    row(
        0,
        ProbeId::ProcessToken,
        Program::SlotToken,
        Token(Slot, 0, 0, 0),
        &[
            Prefix("_ZN19server_context_impl13process_tokenER23completion_token_outputR11server_slot"),
            Prefix("_ZN14server_context13process_tokenER23completion_token_outputR11server_slot"),
        ],
    ),
    row(
        0,
        ProbeId::LaunchSlot,
        Program::SlotStart,
        Plain,
        &[
            Prefix("_ZN19server_context_impl21launch_slot_with_taskER11server_slot"),
            Prefix("_ZN14server_context21launch_slot_with_taskER11server_slot"),
        ],
    ),
    row(0, ProbeId::ReleaseSlot, Program::SlotEnd, Plain, &[Exact("_ZN11server_slot7releaseEv")]),
    // One calls the other, or has it inlined.
    row(
        0,
        ProbeId::SlotError,
        Program::SlotError,
        Plain,
        &[
            Prefix("_ZN19server_context_impl10send_errorERK11server_slot"),
            Prefix("_ZN14server_context10send_errorERK11server_slot"),
        ],
    ),
    row(
        0,
        ProbeId::TaskError,
        Program::TaskError,
        Plain,
        &[Prefix("_ZN19server_context_impl10send_errorEi"), Prefix("_ZN14server_context10send_errorEi")],
    ),
    row(
        0,
        ProbeId::WaitingTask,
        Program::Task,
        Plain,
        &[Exact("_ZN15server_response19add_waiting_task_idEi")],
    ),
    row(
        0,
        ProbeId::WaitingTasks,
        Program::Tasks,
        Plain,
        &[Prefix("_ZN15server_response20add_waiting_task_idsERKSt13unordered_setIi")],
    ),
];
