/* A library to be loaded before the others: whenever the file that the environment names is there, which then goes, the
 * process listens for a moment, so that the agent looks at it. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void *wait(void *file) {
    for (;;) {
        usleep(10000);
        if (unlink(file) != 0) {
            continue;
        }
        int descriptor = socket(AF_INET, SOCK_STREAM, 0);
        if (descriptor >= 0) {
            listen(descriptor, 1);
            close(descriptor);
        }
    }
    return NULL;
}

__attribute__((constructor)) static void start(void) {
    pthread_t thread;
    const char *file = getenv("LISTEN_ONCE");
    if (file != NULL) {
        pthread_create(&thread, NULL, wait, (void *)file);
    }
}
