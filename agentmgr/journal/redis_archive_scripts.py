"""What a manager does in Redis as one, in Lua, beside what `redis_scripts` has for hosts."""

from __future__ import annotations

from .redis_connection import Script
from .redis_scripts import ALWAYS, COMMON, OF_SESSION

LOOKED_AT = 500  #: sessions, in one script: hosts wait for it; all that is said of them took 15 ms
ERASED_AT_ONCE = 50

_OF_SESSIONS = """
local grace = grace_until(now_ms())
local now = now_ms()
local fields = {'owner', 'name', 'holder', 'last_turn', 'input_tokens', 'output_tokens', 'created_at',
    'ended_at', 'end_reason'}
local function is_held(holder) return holder and lives(holder, now, grace) end
local function described(id, used_at)
    local one = redis.call('HMGET', base .. 'session:' .. id, unpack(fields))
    if not one[7] then return nil end
    local holder = one[3]
    if not is_held(holder) then holder = false end
    local state
    if one[8] then state = 'ended'
    elseif redis.call('EXISTS', base .. 'questions:' .. id) == 1 then state = 'asking'
    elseif redis.call('ZLEXCOUNT', base .. 'unfinished', '[' .. id .. ' ', '(' .. id .. '!') > 0 then
        state = 'running'
    elseif holder then state = 'idle'
    else state = 'hibernated' end
    one[3] = holder
    return {id, used_at, state, unpack(one, 1, #fields)} -- what is absent is false, and arrives as None
end
"""

PAGE = Script(
    COMMON
    + _OF_SESSIONS
    + f"""
-- owner, '' for all; place: time, id; limit; state and text, '' for any -> sessions, and where to go on
local owner, at, tie, limit, state, text = arg(), arg(), arg(), number(), arg(), string.lower(arg())
local set = base .. 'by_use'
if owner ~= '' then set = set .. ':' .. owner end
local function has_text(id)
    if text == '' or string.find(id, text, 1, true) then return true end
    local name = redis.call('HGET', base .. 'session:' .. id, 'name')
    return name and string.find(string.lower(name), text, 1, true)
end
local found, seen, offset = {{}}, 0, 0
while seen < {LOOKED_AT} do
    local some = redis.call('ZRANGE', set, at, '-inf', 'BYSCORE', 'REV', 'LIMIT', offset, 200, 'WITHSCORES')
    for i = 1, #some, 2 do
        local id, used_at = some[i], some[i + 1]
        if tonumber(used_at) < tonumber(at) or id < tie then
            at, tie, offset = used_at, id, 0
            seen = seen + 1
            local one = has_text(id) and described(id, used_at)
            if one and (state == '' or one[3] == state) then
                found[#found + 1] = one
                if #found == limit then return {{found, at, tie}} end
            end
        else
            offset = offset + 1
        end
    end
    if #some < 400 then return {{found}} end
end
return {{found, at, tie}}
""",
    ALWAYS,
)

FEW = Script(
    COMMON
    + _OF_SESSIONS
    + """
-- ids -> these sessions
local found = {}
for _, id in ipairs(ARGV) do
    local used_at = redis.call('ZSCORE', base .. 'by_use', id)
    if used_at then found[#found + 1] = described(id, used_at) end
end
return found
""",
    ALWAYS,
)

_ERASING = (
    OF_SESSION
    + """
local erased = {}
local function erase(id)
    local one = redis.call('HMGET', session_key(id), 'owner', 'bytes', 'created_at')
    if not one[3] then return end
    if one[1] then redis.call('ZREM', base .. 'by_use:' .. one[1], id) end
    redis.call('ZREM', base .. 'by_use', id)
    ended(id)
    redis.call('HINCRBY', meta, 'bytes', -(tonumber(one[2] or 0)))
    redis.call('UNLINK', session_key(id), base .. 'events:' .. id, base .. 'turns:' .. id)
    erased[#erased + 1] = id
end
local function forget_links()
    if #erased == 0 then return end
    local holders = {}
    for _, holder in ipairs(redis.call('HVALS', links)) do holders[holder] = true end
    for holder in pairs(holders) do
        local all = redis.call('HGETALL', links .. ':' .. holder)
        for i = 1, #all, 2 do
            for _, id in ipairs(erased) do
                if string.find(all[i + 1], id, 1, true) then
                    redis.call('HDEL', links .. ':' .. holder, all[i])
                    redis.call('HDEL', links, all[i])
                    break
                end
            end
        end
    end
end
"""
)

ERASE = Script(
    COMMON
    + _ERASING
    + """
-- ids -> those that there were
for _, id in ipairs(ARGV) do erase(id) end
forget_links()
return erased
""",
    ALWAYS,
)

PRUNE = Script(
    COMMON
    + _OF_SESSIONS
    + _ERASING
    + f"""
-- horizon: the time before which all that no host holds goes; the most bytes, 0 for any; whether those that
-- are held go too; how many of the longest unused were looked at before, and stay
-- -> how many went unused, all ids, how many stay, whether more are to be looked at
local horizon, most, also_held, stay = number(), number(), arg() == '1', number()
local function too_much() return most > 0 and tonumber(redis.call('HGET', meta, 'bytes') or 0) > most end
local unused, is_done = 0, false
local last = stay + {LOOKED_AT} - 1
local some = redis.call('ZRANGE', base .. 'by_use', stay, last, 'WITHSCORES')
for i = 1, #some, 2 do
    local id, is_old = some[i], tonumber(some[i + 1]) < horizon
    if not is_old and not too_much() then is_done = true end
    if is_done or #erased == {ERASED_AT_ONCE} then break end
    local held = is_held(redis.call('HGET', base .. 'session:' .. id, 'holder'))
    if is_old and not held then
        erase(id)
        unused = unused + 1
    elseif (also_held or not held) and too_much() then
        erase(id)
    else
        stay = stay + 1
    end
end
forget_links()
return {{unused, erased, stay, not is_done and #some > 0}}
""",
    ALWAYS,
)
