// An engine that computes nothing, with the functions of llama.cpp that the agent probes and batches that lie in memory as
// a build of any time might have them.
//
//   HEAD   bytes of a batch before its vector of tokens
//   LEAD   bytes of a token before its set of sequences
//   TAIL   bytes of a token behind its positions
//   LISTS  a token's sequences are a list instead of a set: a layout that nothing is known of
//   SERVER the functions of a server are there, too
//
// Listens, and answers every connection as servers did that call `accept`, not `accept4`. Prints `READY PORT`, then for each line of standard input generates 24 tokens for a prompt of 6 and prints
// `OUT [numbers]`: as a program that uses the library, or, with `slot` in the line, on a slot.

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <thread>
#include <unordered_set>
#include <vector>

#define KEPT __attribute__((noinline, used))

struct llama_batch_ext {
    struct token {
        char lead[LEAD];
#ifdef LISTS
        std::vector<int> seq_ids;
#else
        std::unordered_set<int> seq_ids;
#endif
        int pos[4];
        char tail[TAIL];
    };
    char head[HEAD];
    std::vector<token> tokens;
    std::vector<float> embeddings;
};

struct llama_context {
    const void * model;
    long before[5];
    unsigned size, size_of_sequence;

    int decode(const llama_batch_ext & batch);
    unsigned n_ctx() const;
    unsigned n_ctx_seq() const;
};

KEPT int llama_context::decode(const llama_batch_ext & batch) {
    asm volatile("" ::"r"(&batch) : "memory");
    return 0;
}

KEPT unsigned llama_context::n_ctx() const { return size; }
KEPT unsigned llama_context::n_ctx_seq() const { return size_of_sequence; }

extern "C" KEPT int llama_sampler_sample(void * sampler, llama_context * context, int index) {
    asm volatile("" ::"r"(sampler), "r"(context) : "memory");
    return index + 100;
}

#ifdef SERVER
struct server_task {
    int id;
};
struct server_slot {
    int id;
    void release();
};
struct completion_token_output {
    int token;
};
struct common_sampler;
struct server_context_impl {
    bool launch_slot_with_task(server_slot & slot, server_task && task);
    bool process_token(completion_token_output & token, server_slot & slot);
};

KEPT void server_slot::release() { asm volatile("" ::"r"(this) : "memory"); }
KEPT bool server_context_impl::launch_slot_with_task(server_slot & slot, server_task && task) {
    asm volatile("" ::"r"(&slot), "r"(&task) : "memory");
    return true;
}
KEPT bool server_context_impl::process_token(completion_token_output & token, server_slot & slot) {
    asm volatile("" ::"r"(&token), "r"(&slot) : "memory");
    return true;
}
KEPT int common_sampler_sample(common_sampler * sampler, llama_context * context, int index, bool first) {
    asm volatile("" ::"r"(sampler), "r"(first) : "memory");
    return llama_sampler_sample(nullptr, context, index);
}
#endif

static void decode(llama_context & context, llama_batch_ext & batch, int count, int position) {
    batch.tokens.clear();
    for (int i = 0; i < count; i++) {
        llama_batch_ext::token token{};
        memset(token.lead, 0x5a, sizeof token.lead);
        token.seq_ids.insert(token.seq_ids.end(), 0);
        token.pos[0] = position + i;
        batch.tokens.push_back(token);
    }
    context.decode(batch);
}

// The calls of the HTTP library of b3485, in their order.
static void serve(int listener) {
    for (;;) {
        int connection = accept(listener, nullptr, nullptr);
        if (connection < 0) return;
        char request[4096];
        sockaddr_storage peer;
        socklen_t length = sizeof peer;
        if (recv(connection, request, sizeof request, 0) > 0) {
            getpeername(connection, (sockaddr *) &peer, &length);
            const char answer[] = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
            send(connection, answer, sizeof answer - 1, MSG_NOSIGNAL);
        }
        shutdown(connection, SHUT_RDWR);
        close(connection);
    }
}

int main() {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (sockaddr *) &address, sizeof address) || listen(listener, 1)) return 1;
    socklen_t length = sizeof address;
    if (getsockname(listener, (sockaddr *) &address, &length)) return 1;
    std::thread(serve, listener).detach();

    llama_context context{&context, {}, 2048, 1024};
    llama_batch_ext batch{};
    batch.tokens.reserve(64);
    // A second vector, that holds no tokens.
    batch.embeddings.assign(64, 1.0f);
#ifdef SERVER
    server_context_impl server;
    server_slot slot{0};
    // The warm-up.
    decode(context, batch, 2, 0);
#endif
    int position = 0, task = 0;
    printf("READY %d\n", ntohs(address.sin_port));
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        bool serve = strncmp(line, "slot", 4) == 0;
        if (position + 32 > 1024 || serve) position = 0;
#ifdef SERVER
        if (serve) server.launch_slot_with_task(slot, server_task{++task});
#endif
        printf("OUT [");
        for (int i = 0; i < 24; i++) {
            int count = i ? 1 : 6;
            decode(context, batch, count, position);
            position += count;
            int token = 0;
#ifdef SERVER
            if (serve) {
                completion_token_output output{common_sampler_sample(nullptr, &context, count - 1, false)};
                server.process_token(output, slot);
            } else
#endif
                token = llama_sampler_sample(nullptr, &context, count - 1);
            printf("%s%d", i ? ", " : "", token);
        }
#ifdef SERVER
        if (serve) slot.release();
#endif
        puts("]");
        fflush(stdout);
    }
    return task < 0;
}
