/*
 * Exec-upgrade: carry a JSON message that was read only in part
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QAPI_QMP_JSON_EXEC_UPGRADE_H
#define QAPI_QMP_JSON_EXEC_UPGRADE_H

#include "qapi/qmp/json-parser.h"

/**
 * exec_upgrade_json_save: get what a parser was fed of a message that is not
 * complete yet
 * @parser: the parser, which is not changed
 * @text: what json_message_parser_feed() must get is appended here; any bytes
 *        but NUL, perhaps with different white space than the parser was fed
 *
 * Returns whether the parser is skipping the rest of an erroneous message.
 */
bool exec_upgrade_json_save(const JSONMessageParser *parser, GString *text);

/**
 * exec_upgrade_json_load: bring a new parser into the state of a saved one
 * @parser: the parser
 * @text: what exec_upgrade_json_save() appended
 * @len: length of @text in bytes
 * @recovering: what exec_upgrade_json_save() returned
 */
void exec_upgrade_json_load(JSONMessageParser *parser, const char *text,
                            size_t len, bool recovering);

/**
 * exec_upgrade_json_tokens_save: append the text of queued tokens
 * @tokens: queue of JSONToken
 * @text: gets each token with a space behind it
 */
void exec_upgrade_json_tokens_save(const GQueue *tokens, GString *text);

#endif
