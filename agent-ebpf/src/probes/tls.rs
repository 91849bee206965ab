//! Role TLS: what a server reads and writes through a TLS library, before it is encrypted and after it is decrypted.
//!
//! The library belongs to the whole host. These programs are attached for single processes, so that nobody else runs
//! them.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    macros::{tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext, TracePointContext},
};
use llamaprobe_common::{
    call::{Call, HANDSHAKE, UNKNOWN},
    request::ConnectionKey,
};
use llamaprobe_core::{
    connections::{of_session, serve},
    traffic::{on_read, on_write},
};

use super::{cookie, now, socket};
use crate::{
    arguments,
    connections::{ConnectionMap, EndMap, LINKS, find},
    maps::CALLS,
    record::argument,
};

/// `SSL_accept(session)`: a thread takes up a connection. It asks for its peer when the handshake is over.
#[uprobe]
fn lp_tls_accept(probe: ProbeContext) -> u32 {
    let call = arguments::of(&probe);
    let Some(target) = socket::server() else { return 0 };
    target.hit(cookie(&probe).probe());
    let Ok(session) = call.get(0) else { return 0 };
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the entry is written and read by this thread only.
    if unsafe { CALLS.get(thread) }.is_some_and(|noted| noted.session == session) {
        // A client that is not ready lets the server try again.
        return 0;
    }
    let key = ConnectionKey { tgid: target.tgid, fd: HANDSHAKE };
    socket::count_loss(&target, socket::note(Call { key, buffer: now(), session }))
}

/// `SSL_read(session, buffer, bytes)`: the bytes are there when it returns.
#[uprobe]
fn lp_tls_read(probe: ProbeContext) -> u32 {
    let call = arguments::of(&probe);
    let Some(target) = socket::server() else { return 0 };
    target.hit(cookie(&probe).probe());
    let (Ok(session), Ok(buffer)) = (call.get(0), call.get(1)) else { return 0 };
    let key = of_session(&mut ConnectionMap, &EndMap, session)
        .unwrap_or(ConnectionKey { tgid: target.tgid, fd: UNKNOWN });
    socket::count_loss(&target, socket::note(Call { key, buffer, session }))
}

/// `SSL_read` returns, where its last instructions cannot be probed.
#[uretprobe]
fn lp_tls_read_ret(probe: RetProbeContext) -> u32 {
    // SAFETY: the context is the one the kernel called the program with.
    done(unsafe { bpf_get_attach_cookie(probe.as_ptr()) } as u8, probe.ret::<u64>())
}

/// `SSL_read` is about to return.
#[uprobe]
fn lp_tls_read_end(probe: ProbeContext) -> u32 {
    done(cookie(&probe).probe(), arguments::result(&probe))
}

#[inline(always)]
fn done(probe: u8, result: u64) -> u32 {
    // Number of bytes, or what is not above 0: an `int`.
    let len = result as i32;
    let Some(target) = socket::server() else { return 0 };
    target.hit(probe);
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the entry is written and read by this thread only.
    let Some(&Call { key, buffer, .. }) = (unsafe { CALLS.get(thread) }) else { return 0 };
    let _ = CALLS.remove(thread);
    if len <= 0 || key.fd < 0 {
        return 0;
    }
    socket::count_loss(&target, on_read(&target, &mut { LINKS }, key, (buffer, len as u32), now()))
}

/// `SSL_write(session, buffer, bytes)`
#[uprobe]
fn lp_tls_write(probe: ProbeContext) -> u32 {
    let call = arguments::of(&probe);
    let Some(target) = socket::server() else { return 0 };
    target.hit(cookie(&probe).probe());
    let (Ok(session), Ok(buffer), Ok(len)) = (call.get(0), call.get(1), call.get(2)) else { return 0 };
    let Some(key) = of_session(&mut ConnectionMap, &EndMap, session) else { return 0 };
    let len = len as i32;
    if len <= 0 {
        return 0;
    }
    socket::count_loss(&target, on_write(&target, &mut { LINKS }, key, (buffer, len as u64), now()))
}

/// The system call by which the library reads: tells the descriptor of a session whose connection was open before the
/// agent came. Attached as long as there are such.
#[tracepoint(category = "syscalls", name = "sys_enter_read")]
fn lp_tls_socket(call: TracePointContext) -> u32 {
    let Some(target) = socket::server() else { return 0 };
    let thread = bpf_get_current_pid_tgid();
    let Some(noted) = CALLS.get_ptr_mut(thread) else { return 0 };
    // SAFETY: the entry is written and read by this thread only.
    let noted = unsafe { &mut *noted };
    if noted.session == 0 || noted.key.fd != UNKNOWN {
        return 0;
    }
    let key = ConnectionKey { tgid: target.tgid, fd: argument(&call, 0) as i32 };
    let Some(state) = find(&key) else { return 0 };
    if state.session != 0 {
        return 0;
    }
    state.session = noted.session;
    noted.key = key;
    socket::count_loss(&target, serve(&mut EndMap, state, key))
}
