#include "trace/trace-migration_exec_upgrade.h"
