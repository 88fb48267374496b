-- The end of the module store's script: run the function that the call names, once. The functions are in the
-- files of their noun.
--
-- ARGV: the function's name, the call's id ('' where it changes nothing), the two limits of audit.lua; then
-- names and values of the arguments in turn.

local DONE_MS = 10000

-- Changes that an audit without room refuses. Those that take trouble away, and that make room, go on.
local NEEDS_AUDIT_ROOM = {
  publish = true, set_alias = true, drop_alias = true, keep_gate = true, delete = true, record = true,
  preload = true, unload = true, check_audit = true, begin_distillation = true,
  keep_consolidation = true,
}

local function read_request()
  local request = {}
  for position = 5, #ARGV, 2 do request[ARGV[position]] = ARGV[position + 1] end
  return request
end

local function run_change(name, request)
  local full_bytes = NEEDS_AUDIT_ROOM[name] and audit.bytes_without_room(request.tenant)
  if full_bytes then return {'AuditFull', request.tenant, full_bytes, AUDIT_MAX_BYTES} end
  return changes[name](request)
end

local name, call = ARGV[1], ARGV[2]
local look = looks[name] or sweeps[name]
if look then return look(read_request()) end
local answered_before = redis.call('GET', done_key(call))
if answered_before then return answered_before end
local answer = run_change(name, read_request())
local answer_text = cjson.encode(answer)
if answer[1] == 'done' then redis.call('SET', done_key(call), answer_text, 'PX', DONE_MS) end
return answer_text
