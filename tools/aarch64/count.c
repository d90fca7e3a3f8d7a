/* A plugin for qemu's user-mode emulator that counts executed instructions:
 *
 *   qemu-aarch64 -plugin ./count.so -d plugin PROGRAM
 *
 * At the end it prints, through qemu's log, one line per translated block that was executed: address of its first instruction, number
 * of its instructions, number of executions; and before them the address at which the program's code was loaded. The counts are
 * exact and repeat as long as the program has one thread.
 *
 * Debian packages neither qemu's plugin header nor a plugin, so the few prototypes that are needed stand here; they have been the same
 * since qemu 4.2. PLUGIN_API is the version that qemu asks for: 1 before qemu 9, 2 from there on. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#ifndef PLUGIN_API
#define PLUGIN_API 1
#endif

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info_t;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int flags, void *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
extern void qemu_plugin_outs(const char *);
extern uint64_t qemu_plugin_start_code(void);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = PLUGIN_API;

/* A block is translated again where qemu's cache was emptied: same address, a new entry; readers add them up. */
struct block {
    uint64_t address, instructions, executions;
    struct block *next;
};
static struct block *blocks;

static void executed(unsigned cpu, void *block)
{
    (void)cpu;
    ((struct block *)block)->executions++;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    struct block *b = calloc(1, sizeof *b);
    (void)id;
    if (!b)
        abort();
    b->address = qemu_plugin_tb_vaddr(tb);
    b->instructions = qemu_plugin_tb_n_insns(tb);
    b->next = blocks;
    blocks = b;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, b);
}

static void ended(qemu_plugin_id_t id, void *unused)
{
    char line[96];
    (void)id;
    (void)unused;
    snprintf(line, sizeof line, "code %" PRIx64 "\n", qemu_plugin_start_code());
    qemu_plugin_outs(line);
    for (const struct block *b = blocks; b; b = b->next) {
        if (!b->executions)
            continue;
        snprintf(line, sizeof line, "block %" PRIx64 " %" PRIu64 " %" PRIu64 "\n", b->address, b->instructions, b->executions);
        qemu_plugin_outs(line);
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    (void)argc;
    (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
