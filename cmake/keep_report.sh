#!/bin/sh
# keep_report.sh OBJECT COMMAND...: runs a compiler and keeps ptxas's report beside the object, for .ci/cuda_resources.py.
report=$1.report
shift
"$@" 2> "$report"
status=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' "$report" >&2
exit $status
