// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "engine/base/posix_status.h"
