#!/bin/sh
# How do several services share the load of one address? Clients are handed out among all that run.
#
# sh examples/balanced/balanced.sh            # in one terminal; Ctrl-C closes the gateway
# agentmgr chat                               # in others
# agentmgr shutdown                           # ends the services
#
# One service with three instances does the same: agentmgr register ai-service ai_agent.py --instances 3
set -e
agent=$(dirname "$0")/ai_agent.py
for i in 1 2 3; do
    agentmgr register "ai-service-$i" "$agent" --tags "ai,production" --auto-start
done
exec agentmgr proxy --port "${1:-9090}"
