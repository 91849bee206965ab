//! How llama-server is started, and by which system calls its HTTP library (cpp-httplib) talks. The options are those of
//! `common/arg.cpp`.

use super::routes::ROUTES;
use crate::engines::serving::{Call, Serving, Setting, Settings};

/// How it serves.
pub(super) const SERVING: Serving = Serving {
    // The second is the unified program, told to serve.
    commands: &[&["llama-server"], &["llama", "serve"]],
    settings: Settings {
        model: setting(&["-m", "--model"], "LLAMA_ARG_MODEL"),
        sources: [
            setting(&["-mu", "--model-url"], "LLAMA_ARG_MODEL_URL"),
            setting(&["-hf", "-hfr", "--hf-repo"], "LLAMA_ARG_HF_REPO"),
            setting(&["-dr", "--docker-repo"], "LLAMA_ARG_DOCKER_REPO"),
        ],
        alias: setting(&["-a", "--alias", "--model-alias"], "LLAMA_ARG_ALIAS"),
        drafts: [
            setting(&["-md", "--model-draft", "--spec-draft-model"], "LLAMA_ARG_SPEC_DRAFT_MODEL"),
            setting(&[], "LLAMA_ARG_MODEL_DRAFT"),
        ],
        slots: setting(&["-np", "--parallel"], "LLAMA_ARG_N_PARALLEL"),
        listen: [setting(&["--host"], "LLAMA_ARG_HOST"), setting(&["--port"], "LLAMA_ARG_PORT")],
    },
    default: ("127.0.0.1", "8080"),
    routed_by: "LLAMA_SERVER_ROUTER_PORT",
    routes: ROUTES,
    calls: &[
        Call::new("lp_accept", "syscalls", "sys_exit_accept4"),
        // Servers up to ~b3848 call the older one, and the kernel tells the two apart.
        Call::new("lp_accept", "syscalls", "sys_exit_accept"),
        Call::new("lp_take_up", "syscalls", "sys_enter_getpeername"),
        Call::new("lp_taken_up", "syscalls", "sys_exit_getpeername"),
        Call::new("lp_received", "syscalls", "sys_exit_recvfrom"),
        Call::new("lp_sent", "syscalls", "sys_exit_sendto"),
        Call::new("lp_shutdown", "syscalls", "sys_enter_shutdown"),
        Call::new("lp_close", "syscalls", "sys_enter_close"),
        Call::new("lp_gone", "sock", "inet_sock_set_state"),
    ],
};

const fn setting(flags: &'static [&'static str], variable: &'static str) -> Setting {
    Setting { flags, variable }
}
