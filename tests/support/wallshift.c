/* Shift the wall clock of one process, and leave the monotonic clock alone.
 *
 *   gcc -O2 -shared -fPIC -o wallshift.so wallshift.c -ldl
 *   WALLSHIFT_FILE=offset LD_PRELOAD=./wallshift.so program
 *
 * The file holds one double, the shift in seconds. Whoever writes another value makes the clock jump at that moment.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile double *shift;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("WALLSHIFT_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    if (file < 0)
        return;
    void *memory = mmap(0, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED)
        shift = memory;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = real_clock_gettime ? real_clock_gettime(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
    if (status || !shift || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return status;
    double whole = floor(*shift);
    now->tv_sec += (time_t)whole;
    now->tv_nsec += (long)((*shift - whole) * 1e9);
    if (now->tv_nsec >= 1000000000) {
        now->tv_sec++;
        now->tv_nsec -= 1000000000;
    }
    return 0;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int status = clock_gettime(CLOCK_REALTIME, &exact);
    (void)zone;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return status;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}
