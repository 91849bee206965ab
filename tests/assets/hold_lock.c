/* A library to be loaded before the others: a thread of its own holds a lock for a while, again and again, that the main
 * thread needs whenever it asks for memory. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int is_main;

void *malloc(size_t size) {
    if (!is_main) {
        is_main = syscall(SYS_gettid) == getpid() ? 1 : -1;
    }
    if (is_main == 1) {
        pthread_mutex_lock(&lock);
        pthread_mutex_unlock(&lock);
    }
    return __libc_malloc(size);
}

/* Three times six tenths of a second, or as many milliseconds as the environment says, whenever the file that it names is
 * there, which then goes. */
static void *hold(void *file) {
    const char *ms = getenv("HOLD_LOCK_MS");
    const useconds_t us = ms != NULL ? 1000 * atoi(ms) : 600000;
    for (;;) {
        usleep(10000);
        if (unlink(file) != 0) {
            continue;
        }
        for (int time = 0; time < 3; time++) {
            pthread_mutex_lock(&lock);
            usleep(us);
            pthread_mutex_unlock(&lock);
            usleep(100000);
        }
    }
    return NULL;
}

__attribute__((constructor)) static void start(void) {
    pthread_t thread;
    const char *file = getenv("HOLD_LOCK");
    if (file != NULL) {
        pthread_create(&thread, NULL, hold, (void *)file);
    }
}
