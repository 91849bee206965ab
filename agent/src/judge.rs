//! From what a look at a process found to what is done about it: the agent and `plan` decide by the same function.

use crate::{
    discovery::{Look, Target},
    doctor::{self, KernelVersion},
    plan::{self, Verdict},
};

/// What a process is to the agent.
#[derive(Debug)]
pub enum Judged {
    /// It runs llama.cpp: it can be observed or, as the verdict says, not.
    Llama(Box<Target>, Verdict),
    /// It is called like a server of llama.cpp, shows no symbol and does not listen.
    Opaque(Box<Target>),
    /// It may not be looked at.
    Closed,
    /// There was more to read than may be spent on one look.
    Costly,
    /// It is something else, or gone; and whether it was there.
    Nothing(bool),
}

/// Judges what was found, on a kernel of this release.
pub fn judge(look: Look, release: Option<KernelVersion>) -> Judged {
    match look {
        Look::Found(target) => {
            let no_return = release.and_then(|release| doctor::no_return_probe(target.seccomp, release));
            match plan::plan(&target.plain_images()).without_return_probes(no_return) {
                Verdict::Foreign => Judged::Nothing(true),
                verdict => Judged::Llama(target, verdict),
            }
        }
        Look::Opaque(target) if target.is_listening_server() => {
            Judged::Llama(target, Verdict::Observable(plan::sockets_only()))
        }
        Look::Opaque(target) => Judged::Opaque(target),
        Look::Closed => Judged::Closed,
        Look::Costly => Judged::Costly,
        Look::Nothing(there) => Judged::Nothing(there),
    }
}
