-- The cache's ledger: which chunks are counted, for whom, and what they are worth.
--
-- The files of this folder are one script: prelude.lua comes first, run.lua last, the others in any order. A
-- call runs one function of `scripts` and is one atomic change. The tables below hold the functions that the
-- files use of each other, by noun.
--
-- A chunk is counted from before its value is written until after its value is known to be gone: what is
-- counted is never less than what is stored. `memserve/kv/ledger/integrity.py` checks what this file says of
-- keys and fields.
--
-- Every key shares one hash tag, so that a cluster keeps the ledger on one node. The values lie elsewhere.
-- Names on disk are short.

local PREFIX = '{memserve:kv}:'

local KEY = {
  worth = PREFIX .. 'worth',            -- sorted set of all members by their worth
  due = PREFIX .. 'due',                -- sorted set of all members by when something is to be done
  bytes = PREFIX .. 'bytes',            -- hash by tenant, ALL for all of them: bytes that are counted
  chunks = PREFIX .. 'chunks',          -- hash by tenant and ALL: chunks that are counted
  pinned = PREFIX .. 'pinned',          -- hash by tenant and ALL: bytes of the chunks that are pinned
  clock = PREFIX .. 'clock',            -- number: the worth of the last victim, which never falls
  generation = PREFIX .. 'generation',  -- number: the last generation that an entry got
  nothing = PREFIX .. 'nothing',        -- never there
}

local function entry_key(member) return PREFIX .. 'entry:' .. member end

-- Sorted set of a tenant's members by their worth, as in KEY.worth.
local function tenant_worth_key(tenant) return KEY.worth .. ':' .. tenant end

-- Set of the members that were computed with a module.
local function module_key(module) return PREFIX .. 'module:' .. module end

-- Set of the chunks that were first used in a window of time.
local function seen_key(window) return PREFIX .. 'seen:' .. window end

-- The fields of an entry, a hash.
local FIELD = {
  state = 's',             -- one of STATE
  bytes = 'b',             -- of the value, header included
  tenant = 't',
  module = 'm',            -- digest of the module version it was computed with, '' for the base model
  uses = 'u',
  cost = 'c',              -- seconds that a use saves, per MiB
  parent = 'p',            -- the member before it in its chain, '' for the first
  depth = 'd',             -- tokens of the prompt up to its end
  generation = 'g',        -- another one each time that the member is counted anew
  pinned_until = 'pin',    -- seconds since the epoch, or NOT_PINNED
  may_have_value = 'over', -- set where it took the place of an entry whose value may still be there
  worth_after_pin = 'w',   -- what a pinned chunk is worth when its pin runs out
}

local STATE = {
  reserved = 'r',   -- its value is being written
  committed = 'c',
  condemned = 'x',  -- its value is being removed
}

local NOT_PINNED = '0'
-- The scope of all tenants together. No tenant is called so.
local ALL = '*'
-- Worth of what must not be evicted now: pinned, reserved or condemned.
local NOT_EVICTABLE = '+inf'
-- Redis's own clock: the clocks of the workers differ.
local TIME = redis.call('TIME')
local NOW_S = tonumber(TIME[1]) + tonumber(TIME[2]) / 1e6

-- Functions by their noun.
local entries, usage, worth, pins, removals, scripts = {}, {}, {}, {}, {}, {}

-- Reads ARGV from left to right. The first argument is the script's name.
local arguments = {position = 1}

function arguments.text()
  arguments.position = arguments.position + 1
  return ARGV[arguments.position]
end

function arguments.number() return tonumber(arguments.text()) end

-- The texts that are left.
function arguments.rest()
  local texts = {}
  while arguments.position < #ARGV do texts[#texts + 1] = arguments.text() end
  return texts
end

-- One value or up to three. Without a table for them: it is called for every chunk.
local function append(list, first, second, third)
  list[#list + 1] = first
  list[#list + 1] = second
  list[#list + 1] = third
end

-- A full Redis refuses a script whose first write could need memory. What frees memory begins with a write
-- that cannot.
local function run_even_if_full() redis.call('DEL', KEY.nothing) end
