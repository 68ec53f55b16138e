// User-mode Linux on a processor whose register state is larger than it knows (AMX): its ptrace buffer holds 2,696
// bytes, and the host refuses to set a part (EFAULT, "ptrace set fp regs failed"). Preloaded, this sets what user-mode
// Linux has and leaves the rest, which no guest touches, as it was. Used by kernel-matrix.
#define _GNU_SOURCE
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

// The raw call leaves PEEK results behind a pointer; user-mode Linux peeks through the C library's convention.
static long host(long request, long pid, void *addr, void *data) {
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
        long word;
        return syscall(SYS_ptrace, request, pid, addr, &word) < 0 ? -1 : word;
    }
    return syscall(SYS_ptrace, request, pid, addr, data);
}

long ptrace(enum __ptrace_request request, ...) {
    va_list args;
    va_start(args, request);
    pid_t pid = va_arg(args, pid_t);
    void *addr = va_arg(args, void *), *data = va_arg(args, void *);
    va_end(args);
    if (request == PTRACE_SETREGSET && (long)addr == NT_X86_XSTATE) {
        static __thread unsigned char whole[16384];
        struct iovec all = {whole, sizeof whole}, *given = data;
        if (host(PTRACE_GETREGSET, pid, addr, &all) == 0 && given->iov_len < all.iov_len) {
            memcpy(whole, given->iov_base, given->iov_len);
            // The bitmap of components in use, after the 512 bytes of the legacy area: not the two of AMX.
            unsigned long long used;
            memcpy(&used, whole + 512, sizeof used);
            used &= ~(3ull << 17);
            memcpy(whole + 512, &used, sizeof used);
            return host(request, pid, addr, &all);
        }
    }
    return host(request, pid, addr, data);
}
