"""What is done in Redis as one: scripts in Lua. `redis_keys` says what the keys hold.

The one key that each is given is that of `meta`; the others begin as it does. A script of a host is told by
which mark it knows the journal (`made`), and how many of its batches and claims have been written for
certain: where Redis has fewer, it lacks something that it had. The script then does nothing and returns
`stale`.
"""

from __future__ import annotations

from .redis_connection import Script
from .redis_keys import LEASE_S, REMEMBERED_S, SILENCE_S, VERSION

STALE = b"stale"
PULSE_S = 1.0  #: of many hosts that renew, one in a second writes the time
ALWAYS = "allow-oom"  #: what has to be done where memory is full, too, and takes none

COMMON = f"""
local meta = KEYS[1]
local base = string.sub(meta, 1, -5)
local batches, leases, links = base .. 'batches', base .. 'leases', base .. 'links'
local next_arg = 1
local function arg()
    next_arg = next_arg + 1
    return ARGV[next_arg - 1]
end
local function number() return tonumber(arg()) end
local function now_ms()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Until when all leases count, because none could be renewed for a while. To be asked before any lease is
-- looked at: the first that comes after the silence notes it.
local function grace_until(now)
    local times = redis.call('HMGET', meta, 'version', 'pulse', 'grace_until')
    if times[1] ~= '{VERSION}' then return 0 end -- there is no journal yet, or one that is not ours
    local silence, grace = now - tonumber(times[2] or now - {PULSE_S * 1000:.0f}), tonumber(times[3] or 0)
    if silence > {SILENCE_S * 1000:.0f} then
        grace = now + {LEASE_S * 1000:.0f}
        redis.call('HSET', meta, 'grace_until', string.format('%.0f', grace))
    end
    if silence >= {PULSE_S * 1000:.0f} then redis.call('HSET', meta, 'pulse', string.format('%.0f', now)) end
    return grace
end
local function lives(holder, now, grace)
    local till = tonumber(redis.call('ZSCORE', leases, holder) or 0)
    return till > now or (till > 0 and now < grace)
end
local function renew(holder, now)
    if tonumber(redis.call('ZSCORE', leases, holder) or 0) >= 0 then
        redis.call('ZADD', leases, string.format('%.0f', now + {LEASE_S * 1000:.0f}), holder)
    end
end
"""

_OF_HOST = """
local made, holder, batch, claims = arg(), arg(), number(), number()
local stored = redis.call('HMGET', batches, holder, holder .. ' claims')
local stored_batch, stored_claims = tonumber(stored[1] or 0), tonumber(stored[2] or 0)
if redis.call('HGET', meta, 'made') ~= made or stored_batch < batch or stored_claims < claims then
    return 'stale'
end
"""

_OF_CLAIM = """
redis.call('HINCRBY', batches, holder .. ' claims', 1)
"""

OF_SESSION = """
local all_bytes = 0
local function session_key(id) return base .. 'session:' .. id end

-- The fields of a session that replace each other, and how many bytes that adds.
local function keep(id, fields)
    local more = 0
    for at = 1, #fields, 2 do
        more = more + #fields[at + 1] - redis.call('HSTRLEN', session_key(id), fields[at])
    end
    redis.call('HSET', session_key(id), unpack(fields))
    return more
end
local function drop_questions(id)
    for _, step in ipairs(redis.call('HKEYS', base .. 'questions:' .. id)) do
        redis.call('ZREM', base .. 'asked', id .. ' ' .. step)
    end
    redis.call('DEL', base .. 'questions:' .. id)
end
local function take_name(id, field)
    if redis.call('HSETNX', base .. 'names', field, id) == 0
        and redis.call('HGET', base .. 'names', field) ~= id then
        redis.call('HDEL', session_key(id), 'name') -- another session got it
    end
end
local function free_name(id)
    local found = redis.call('HMGET', session_key(id), 'owner', 'name')
    if found[2] then
        local owner = found[1] or ''
        local field = #owner .. ':' .. owner .. found[2]
        if redis.call('HGET', base .. 'names', field) == id then
            redis.call('HDEL', base .. 'names', field)
        end
    end
end
local function ended(id)
    drop_questions(id)
    redis.call('ZREMRANGEBYLEX', base .. 'unfinished', '[' .. id .. ' ', '(' .. id .. '!')
    free_name(id)
end

-- Reads the changes of a session off the arguments, and does them unless they are `skipped`.
local function change(id, skipped)
    local bytes = number()
    for _ = 1, number() do
        local words = {}
        for at = 1, number() do words[at] = arg() end
        if skipped then
            -- they are only read
        elseif words[1] == 'KEEP' then
            bytes = bytes + keep(id, {unpack(words, 2)})
        elseif words[1] == 'ASKED' then
            drop_questions(id)
        elseif words[1] == 'NAME' then
            take_name(id, words[2])
        elseif words[1] == 'ENDED' then
            ended(id)
        elseif words[1] == 'XADD' then
            local done = redis.pcall(unpack(words)) -- what has a number is there already
            if type(done) == 'table' and done.err
                and not string.find(done.err, 'equal or smaller', 1, true) then
                error(done)
            end
        else
            redis.call(unpack(words))
        end
    end
    if bytes ~= 0 and not skipped then
        redis.call('HINCRBY', session_key(id), 'bytes', bytes)
        all_bytes = all_bytes + bytes
    end
end
local function count_bytes()
    if all_bytes ~= 0 then redis.call('HINCRBY', meta, 'bytes', all_bytes) end
end
"""

OPEN = Script(
    COMMON
    + f"""
-- VERSION, a new mark, holder, batch, claims -> mark, whether something is lacking; or what it is instead
local kind = redis.call('TYPE', meta)['ok']
local version = kind == 'hash' and redis.call('HGET', meta, 'version')
if kind ~= 'none' and not version then return {{'foreign', kind}} end
if version and tonumber(version) > tonumber(ARGV[1]) then return {{'newer', version}} end
if not version then redis.call('HSET', meta, 'version', ARGV[1], 'made', ARGV[2], 'bytes', 0) end
local holder, now = ARGV[3], now_ms()
grace_until(now)
local past = string.format('%.0f', now - {REMEMBERED_S * 1000:.0f})
for _, old in ipairs(redis.call('ZRANGE', leases, '-' .. past, past, 'BYSCORE', 'LIMIT', 0, 50)) do
    for _, link in ipairs(redis.call('HKEYS', links .. ':' .. old)) do redis.call('HDEL', links, link) end
    redis.call('DEL', links .. ':' .. old)
    redis.call('HDEL', batches, old, old .. ' claims')
    redis.call('ZREM', leases, old)
end
local stored = redis.call('HMGET', batches, holder, holder .. ' claims')
local lacks = tonumber(stored[1] or 0) < tonumber(ARGV[4]) or tonumber(stored[2] or 0) < tonumber(ARGV[5])
for at, field in ipairs({{holder, holder .. ' claims'}}) do
    redis.call('HSET', batches, field, math.max(tonumber(stored[at] or 0), tonumber(ARGV[at + 3])))
end
renew(holder, now)
return {{redis.call('HGET', meta, 'made'), lacks and 1 or 0}}
"""
)

COMMIT = Script(
    COMMON
    + _OF_HOST
    + OF_SESSION
    + """
-- then the number of this batch; sessions: id, epoch, 1 if it is new, changes; connections: id, what, state
-- -> the ids of the sessions, and of the connections, that others have
local this = number()
local again = stored_batch >= this -- its answer was lost, and it was not
local lost, lost_links = {}, {}
for _ = 1, number() do
    local id, epoch, is_new = arg(), arg(), arg()
    local held = redis.call('HGET', session_key(id), 'epoch')
    if is_new == '1' and not held then held = epoch elseif is_new == '1' and not again then held = nil end
    change(id, again or held ~= epoch)
    if held ~= epoch then lost[#lost + 1] = id end
end
local now = redis.call('TIME')[1] .. ' '
for _ = 1, number() do
    local id, what, state = arg(), arg(), arg()
    local other = redis.call('HGET', links, id)
    local ours = links .. ':' .. holder
    if what == 'end' then
        if other == holder and not again then
            redis.call('HDEL', links, id)
            redis.call('HDEL', ours, id)
        end
    elseif other == holder or (what == 'put' and not other) then
        if not again then
            if not other then redis.call('HSET', links, id, holder) end
            redis.call('HSET', ours, id, now .. state)
        end
    else
        lost_links[#lost_links + 1] = id
    end
end
count_bytes()
if not again then redis.call('HSET', batches, holder, this) end -- else it may come late, behind newer ones
return {lost, lost_links}
"""
)

WHOLE = Script(
    COMMON
    + _OF_HOST
    + _OF_CLAIM
    + OF_SESSION
    + """
-- then id, epoch, 1 if it had been written, a mark of this write, changes
-- -> the new epoch, or 0: another has it, or it was erased
local id, epoch, had_row, mark = arg(), number(), arg(), arg()
local now = now_ms()
local grace = grace_until(now)
local found = redis.call('HMGET', session_key(id), 'epoch', 'holder', 'written')
if found[3] == mark and tonumber(found[1]) == epoch + 1 then return epoch + 1 end -- its answer was lost
if not found[1] and had_row == '1' then return 0 end
if found[1] and tonumber(found[1]) > epoch then return 0 end
if found[2] and found[2] ~= holder and lives(found[2], now, grace) then return 0 end
redis.call('HSET', session_key(id), 'epoch', epoch + 1, 'holder', holder, 'written', mark)
change(id, false)
count_bytes()
return epoch + 1
"""
)

CREATE_NAMED = Script(
    COMMON
    + _OF_HOST
    + _OF_CLAIM
    + OF_SESSION
    + """
-- then the name's field, id, changes -> the id of the session that has the name
local field, id = arg(), arg()
local taken = redis.call('HGET', base .. 'names', field)
if taken and taken ~= id then return taken end
if not taken then
    change(id, false)
    count_bytes()
end
return id
"""
)

CLAIM = Script(
    COMMON
    + _OF_HOST
    + _OF_CLAIM
    + """
-- then id -> its epoch, 0 where it has ended; or who holds it; or nothing
local session = base .. 'session:' .. arg()
local now = now_ms()
local grace = grace_until(now)
local found = redis.call('HMGET', session, 'epoch', 'holder', 'ended_at')
if not found[1] then return false end
if found[3] then return 0 end
if found[2] and found[2] ~= holder and lives(found[2], now, grace) then return found[2] end
redis.call('HSET', session, 'holder', holder)
return redis.call('HINCRBY', session, 'epoch', 1)
"""
)

TAKE_LINK = Script(
    COMMON
    + _OF_HOST
    + _OF_CLAIM
    + """
-- then the id of a connection -> its state, which this host alone writes from now on; or nothing
local id = arg()
local other = redis.call('HGET', links, id)
local state = other and redis.call('HGET', links .. ':' .. other, id)
if not state then return false end
redis.call('HDEL', links .. ':' .. other, id)
redis.call('HSET', links .. ':' .. holder, id, state)
redis.call('HSET', links, id, holder)
return string.sub(state, string.find(state, ' ', 1, true) + 1)
"""
)

OUTDATE = Script(
    COMMON
    + _OF_HOST
    + _OF_CLAIM
    + """
-- then what is to be their state, and ids: these of the host's connections, and all that are known
local state = redis.call('TIME')[1] .. ' ' .. arg()
local ours = links .. ':' .. holder
for _, id in ipairs(redis.call('HKEYS', ours)) do redis.call('HSET', ours, id, state) end
while next_arg <= #ARGV do
    local id = arg()
    local other = redis.call('HGET', links, id)
    if not other or other == holder then
        redis.call('HSET', links, id, holder)
        redis.call('HSET', ours, id, state)
    end
end
return 1
"""
)

RENEW = Script(
    COMMON
    + """
-- holder, mark -> mark, batch, claims: as far as Redis has them
local now = now_ms()
grace_until(now)
if redis.call('HGET', meta, 'made') == ARGV[2] then renew(ARGV[1], now) end
return {redis.call('HGET', meta, 'made'), unpack(redis.call('HMGET', batches, ARGV[1], ARGV[1] .. ' claims'))}
""",
    ALWAYS,
)

REVOKE = Script(
    COMMON
    + """
-- holders: any other may claim what they hold
for _, holder in ipairs(ARGV) do redis.call('ZADD', leases, string.format('-%.0f', now_ms()), holder) end
""",
    ALWAYS,
)

CLOSE = Script(
    COMMON
    + """
-- holder: it holds nothing more. Its connections may go on with others
redis.call('HDEL', batches, ARGV[1], ARGV[1] .. ' claims')
if redis.call('EXISTS', links .. ':' .. ARGV[1]) == 1 then
    redis.call('ZADD', leases, string.format('-%.0f', now_ms()), ARGV[1])
else
    redis.call('ZREM', leases, ARGV[1])
end
""",
    ALWAYS,
)

LIVING = Script(
    COMMON
    + """
-- those who may hold
local now = now_ms()
local least = now
if now < grace_until(now) then least = 0 end
return redis.call('ZRANGE', leases, '(' .. string.format('%.0f', least), '+inf', 'BYSCORE')
""",
    ALWAYS,
)
