/* The threads of the kernel: one pool for all networks and all callers.
 *
 * A caller posts its work, computes windows itself, and waits for the threads that joined it; it never waits for a
 * thread that is still asleep. Threads are made when they are first wanted and sleep when there is nothing to do. Each
 * keeps its scratch memory. A child process of fork() begins with no threads.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "kernel.h"

#define MAX_THREADS 256
#define MAX_CHUNK 4
#define SPINS 2000 /* looks for work, some 50 us, before a thread sleeps: a pass posts one work right after the other */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t posted = PTHREAD_COND_INITIALIZER, left = PTHREAD_COND_INITIALIZER;
static struct work *works;    /* those that wait for threads to join; guarded by `lock`, as are the next two */
static int threads_count;     /* made so far */
static int sleeping;          /* of these */
static atomic_ulong postings; /* that there were; a thread that spins looks at it */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t scratch_key;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void before_fork(void) { pthread_mutex_lock(&lock); }

static void after_fork_in_parent(void) { pthread_mutex_unlock(&lock); }

static void after_fork_in_child(void) {
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&posted, NULL);
    pthread_cond_init(&left, NULL);
    works = NULL;
    threads_count = sleeping = 0;
}

static void set_up(void) {
    pthread_key_create(&scratch_key, free);
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* This thread's scratch memory, at least so large; null where there is none. Its first 64 bytes hold its size. */
static void *scratch_of(size_t bytes) {
    char *kept = pthread_getspecific(scratch_key);
    if (kept && *(size_t *)kept >= bytes) return kept + 64;
    free(kept);
    pthread_setspecific(scratch_key, NULL);
    size_t size = (bytes + 63) / 64 * 64;
    kept = aligned_alloc(64, size + 64);
    if (!kept) return NULL;
    if (pthread_setspecific(scratch_key, kept)) {
        free(kept);
        return NULL;
    }
    *(size_t *)kept = size;
    return kept + 64;
}

/* Compute windows until none is left to take. Returns 1 where there is no memory for that. */
static int take_windows(struct work *work) {
    void *scratch = scratch_of(work->bytes);
    if (!scratch) return 1;
    int begun = 0;
    for (;;) {
        long first = atomic_fetch_add(&work->next, work->chunk);
        if (first >= work->count) break;
        if (!begun && work->begin) work->begin(work, scratch);
        begun = 1;
        long last = first + work->chunk < work->count ? first + work->chunk : work->count;
        for (long index = first; index < last; index++) work->window(work, index, scratch);
    }
    if (begun && work->end) work->end();
    return 0;
}

/* Join a work that wants a thread. Called with the lock held, which is given back meanwhile. Returns 0 without one. */
static int join_work(void) {
    struct work *work = works;
    while (work && !work->wanted) work = work->following;
    if (!work) return 0;
    work->wanted--;
    atomic_fetch_add(&work->helpers, 1);
    pthread_mutex_unlock(&lock);
    take_windows(work); /* without memory, those that have some compute its share */
    pthread_mutex_lock(&lock);
    if (atomic_fetch_sub(&work->helpers, 1) == 1) pthread_cond_broadcast(&left);
    return 1;
}

static void *serve(void *unused) {
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        if (join_work()) continue;
        unsigned long seen = atomic_load(&postings);
        pthread_mutex_unlock(&lock);
        for (int i = 0; i < SPINS && atomic_load_explicit(&postings, memory_order_relaxed) == seen; i++) relax();
        pthread_mutex_lock(&lock);
        if (atomic_load(&postings) != seen) continue;
        sleeping++;
        pthread_cond_wait(&posted, &lock);
        sleeping--;
    }
    return NULL;
}

/* Make threads until there are `count`; called with the lock held. They leave the process's signals to others. */
static void make_threads(int count) {
    sigset_t blocked, before;
    if (threads_count >= count) return;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV), sigdelset(&blocked, SIGBUS), sigdelset(&blocked, SIGFPE), sigdelset(&blocked, SIGILL);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (threads_count < count && !pthread_create(&thread, &detached, serve, NULL)) threads_count++;
    pthread_attr_destroy(&detached);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* More threads than processors only take turns. */
static int processors(void) {
#ifdef __linux__
    cpu_set_t allowed;
    if (!sched_getaffinity(0, sizeof allowed, &allowed)) return CPU_COUNT(&allowed);
#endif
    return MAX_THREADS;
}

int run_work(struct work *work, int threads) {
    pthread_once(&once, set_up);
    if (threads > 1) {
        int most = processors();
        if (threads > most) threads = most;
        if (threads > MAX_THREADS) threads = MAX_THREADS;
    }
    if (threads < 1) threads = 1;
    work->chunk = work->count / (2l * threads);
    work->chunk = work->chunk < 1 ? 1 : work->chunk > MAX_CHUNK ? MAX_CHUNK : work->chunk;
    long chunks = (work->count + work->chunk - 1) / work->chunk;
    work->wanted = (int)(chunks < threads ? chunks : threads) - 1;
    if (work->wanted <= 0) return take_windows(work);

    pthread_mutex_lock(&lock);
    make_threads(work->wanted);
    work->following = works;
    works = work;
    atomic_fetch_add(&postings, 1);
    for (int i = 0; i < work->wanted && i < sleeping; i++) pthread_cond_signal(&posted);
    pthread_mutex_unlock(&lock);
    int failed = take_windows(work);
    for (int i = 0; i < SPINS && atomic_load_explicit(&work->helpers, memory_order_relaxed); i++) relax();
    pthread_mutex_lock(&lock);
    struct work **place = &works;
    while (*place != work) place = &(*place)->following;
    *place = work->following;
    while (atomic_load(&work->helpers)) pthread_cond_wait(&left, &lock);
    pthread_mutex_unlock(&lock);
    return failed && atomic_load(&work->next) < work->count;
}
