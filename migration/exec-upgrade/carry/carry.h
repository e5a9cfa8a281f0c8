/*
 * Exec-upgrade: one file for each thing that is carried
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_CARRY_H
#define EXEC_UPGRADE_CARRY_H

#include "migration/exec-upgrade/core/core.h"

extern const ExecUpgradeStage exec_upgrade_stage_process;
extern const ExecUpgradeStage exec_upgrade_stage_sandbox;
extern const ExecUpgradeStage exec_upgrade_stage_scsi;
extern const ExecUpgradeStage exec_upgrade_stage_thread_context;
extern const ExecUpgradeStage exec_upgrade_stage_device_state;
extern const ExecUpgradeStage exec_upgrade_stage_vmgenid;
extern const ExecUpgradeStage exec_upgrade_stage_balloon;
extern const ExecUpgradeStage exec_upgrade_stage_dbus_vmstate;
extern const ExecUpgradeStage exec_upgrade_stage_monitor_thread;
extern const ExecUpgradeStage exec_upgrade_stage_monitor;
extern const ExecUpgradeStage exec_upgrade_stage_chardev;
extern const ExecUpgradeStage exec_upgrade_stage_net;
extern const ExecUpgradeStage exec_upgrade_stage_vhost;
extern const ExecUpgradeStage exec_upgrade_stage_spice;

/*
 * The process
 */

/* exec_upgrade_process_init: note which descriptors were left open for us */
void exec_upgrade_process_init(void);

/**
 * exec_upgrade_process_ready: the machine is complete, and so is what decides
 * whether exec-upgrade is on
 */
void exec_upgrade_process_ready(void);

/**
 * exec_upgrade_process_adopt: take over what start-up needs first: working
 * folder, pidfile, process name
 * @h: the handoff
 * @errp: error
 */
bool exec_upgrade_process_adopt(const ExecUpgradeHandoff *h, Error **errp);

/*
 * Sandbox
 */

/* exec_upgrade_sandbox_note_runas: the process will be another user's */
void exec_upgrade_sandbox_note_runas(void);

/**
 * exec_upgrade_sandbox_check_binary: check that Landlock lets this process
 * execute a file
 * @path: its path
 * @errp: error
 */
bool exec_upgrade_sandbox_check_binary(const char *path, Error **errp);

/*
 * Monitors
 */

/**
 * exec_upgrade_monitor_hold: stop the thread that serves QMP monitors
 *
 * Until as many exec_upgrade_monitor_release(), nothing is read from or
 * written to their connections but by the main thread.
 */
void exec_upgrade_monitor_hold(void);
void exec_upgrade_monitor_release(void);

/**
 * exec_upgrade_monitor_ask: an HMP monitor's user asks for an upgrade
 * @mon: the monitor, in one of its commands
 *
 * Returns when no QMP command is being executed, except one that @mon is a
 * part of; or after a second, for the check to refuse.  Followed by
 * exec_upgrade_monitor_ask_done() if the upgrade fails.
 */
void exec_upgrade_monitor_ask(Monitor *mon);
void exec_upgrade_monitor_ask_done(Monitor *mon);

/**
 * exec_upgrade_monitor_reply: answer the client that asked for the upgrade
 * @h: the handoff
 * @result: what was done
 *
 * Once, in the new process, when the guest goes on.  Answers nobody if the
 * client has gone.
 */
void exec_upgrade_monitor_reply(const ExecUpgradeHandoff *h,
                                ExecUpgradeResult *result);

/**
 * exec_upgrade_monitor_go_on: let the monitors' thread go on
 *
 * Not before everything is said that the clients there were are to hear: if
 * one of them is gone, the thread accepts the next one in its place, who must
 * get neither the reply nor, before a greeting, the event.
 */
void exec_upgrade_monitor_go_on(void);

/**
 * exec_upgrade_monitor_result_text: describe a result to a human
 * @result: the result
 *
 * Returns lines of text, which the caller frees.
 */
char *exec_upgrade_monitor_result_text(const ExecUpgradeResult *result);

#endif
