//! The library by which a server of any engine speaks TLS: OpenSSL and its kin. A file of it is of interest only beside an
//! engine's.

use llamaprobe_common::probe::ProbeId;

use super::catalog::{Layout::Plain, Name::Exact, Program, Row, row};

/// What is in the string table of a file that may be such a library.
pub(super) const MARK: &[u8] = b"SSL_";

/// What is hooked of it.
pub(super) static ROWS: &[Row] = &[
    // Where the return is probed the stack pointer must be that of the entry.
    row(0, ProbeId::SslRead, Program::TlsRead, Plain, &[Exact("SSL_read")]),
    row(0, ProbeId::SslWrite, Program::TlsWrite, Plain, &[Exact("SSL_write")]),
    row(0, ProbeId::SslAccept, Program::TlsAccept, Plain, &[Exact("SSL_accept")]),
];
