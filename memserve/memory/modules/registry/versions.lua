-- Versions: what a module was at one time, which never changes. Keys are in prelude.lua.
--
-- A version answers as a list of four: its JSON, its texts' JSON, its gate report's JSON, '1' where it moves
-- logits. What is not known is false.

-- The fields of a version in the hash of its module.
function versions.fields(number)
  return {
    body = 'v:' .. number,         -- JSON, without the texts
    texts = 't:' .. number,        -- JSON, apart so that requests need not carry them
    gate = 'g:' .. number,         -- JSON of the newest gate report
    moves_logits = 'm:' .. number, -- '1' once a worker has seen it
    mark = 'h:' .. number,         -- JSON {token, ends} of who deletes it
  }
end

-- The first of the four is false where there is no such version.
function versions.read(tenant, module, number)
  local fields = versions.fields(number)
  return redis.call('HMGET', versions_key(tenant, module),
    fields.body, fields.texts, fields.gate, fields.moves_logits)
end

-- As versions.read(), without the texts and the gate report.
function versions.read_light(tenant, module, number)
  local fields = versions.fields(number)
  local body, moves_logits =
    unpack(redis.call('HMGET', versions_key(tenant, module), fields.body, fields.moves_logits))
  return {body, false, false, moves_logits}
end

-- The version's JSON as a table, or nil.
function versions.body(tenant, module, number)
  local body = redis.call('HGET', versions_key(tenant, module), versions.fields(number).body)
  return body and cjson.decode(body) or nil
end

function versions.exists(tenant, module, number)
  return redis.call('HEXISTS', versions_key(tenant, module), versions.fields(number).body) == 1
end

-- The token of the deletion whose mark is on the version, or nil.
function versions.mark_token(tenant, module, number)
  local mark = redis.call('HGET', versions_key(tenant, module), versions.fields(number).mark)
  if not mark then return nil end
  mark = cjson.decode(mark)
  return mark.ends > NOW_S and mark.token or nil
end

-- Whether it exists, and nobody deletes it.
function versions.is_usable(tenant, module, number)
  return versions.exists(tenant, module, number) and not versions.mark_token(tenant, module, number)
end

function versions.has_passed_gate(tenant, module, number)
  local gate = redis.call('HGET', versions_key(tenant, module), versions.fields(number).gate)
  return gate and cjson.decode(gate).passed
end

-- The digests of what a version consists of.
function versions.digests(body)
  return body.probes_digest ~= '' and {body.digest, body.probes_digest} or {body.digest}
end

-- What the audit says of a version.
function versions.audit_text(body)
  return cjson.encode({
    version = body.version, digest = body.digest, kind = body.kind, probes_digest = body.probes_digest,
  })
end

function versions.newest_number(tenant, module)
  return redis.call('ZREVRANGE', numbers_key(tenant, module), 0, 0)[1]
end

-- Whether there is a module with this name now.
function versions.exist(tenant, module) return redis.call('EXISTS', numbers_key(tenant, module)) == 1 end

-- request: tenant, module, number. Returns the version or false.
function looks.version(request)
  local version = versions.read(request.tenant, request.module, request.number)
  return version[1] and version
end

-- request: tenant, module, before (a bound of ZREVRANGEBYSCORE), limit. Returns a page, newest first.
function looks.versions(request)
  local tenant, module, limit = request.tenant, request.module, tonumber(request.limit)
  local numbers = redis.call('ZREVRANGEBYSCORE', numbers_key(tenant, module), request.before, '-inf',
    'LIMIT', 0, limit + 1)
  return pages.of_keys(numbers, limit, function(number) return versions.read(tenant, module, number) end)
end

-- Whether another version, which nobody deletes, has the digest of this one. request: tenant, module, number.
function looks.other_references(request)
  local tenant, module, number = request.tenant, request.module, request.number
  local body = versions.body(tenant, module, number)
  if not body then return false end
  local this = owner(tenant, module, number)
  for _, other in ipairs(redis.call('SMEMBERS', references_key(body.digest))) do
    if other ~= this and not versions.mark_token(decode_owner(other)) then return 1 end
  end
  return 0
end

local function same_content(body, other)
  return body.digest == other.digest and body.probes_digest == other.probes_digest
    and body.base_digest == other.base_digest
end

-- The refusal of a new version, or nil.
local function refuse_publication(request, body, newest)
  local tenant, module = request.tenant, request.module
  local versions_max, modules_max = tonumber(request.versions_max), tonumber(request.modules_max)
  if versions_max and redis.call('ZCARD', numbers_key(tenant, module)) >= versions_max then
    return {'QuotaReached', 'versions of module ' .. module, versions_max, 'max_versions_per_module'}
  end
  if modules_max and not newest and redis.call('ZCARD', names_key(tenant)) >= modules_max then
    return {'QuotaReached', 'modules of tenant ' .. tenant, modules_max, 'max_modules_per_tenant'}
  end
  local unpublishable = claims.first_unpublishable(request.claim, versions.digests(body))
  if unpublishable then return {'DigestCondemned', unpublishable} end
  return nil
end

-- Write a new version under the next number. Returns the version's JSON.
local function add_version(request, body)
  local tenant, module = request.tenant, request.module
  local number = redis.call('HINCRBY', head_key(tenant, module), 'last', 1)
  redis.call('HSET', head_key(tenant, module), 'kind', body.kind)
  -- As text: cjson would round the version's numbers.
  local body_text = '{"version":' .. number .. ',' .. string.sub(request.version, 2)
  local fields, hash = versions.fields(number), versions_key(tenant, module)
  redis.call('HSET', hash, fields.body, body_text, fields.texts, request.texts)
  if request.gate ~= '' then redis.call('HSET', hash, fields.gate, request.gate) end
  if request.moves_logits ~= '' then redis.call('HSET', hash, fields.moves_logits, request.moves_logits) end
  redis.call('ZADD', numbers_key(tenant, module), number, number)
  redis.call('ZADD', names_key(tenant), 0, module)
  redis.call('ZADD', names_key(tenant, body.kind), 0, module)
  for _, digest in ipairs(versions.digests(body)) do
    redis.call('SADD', references_key(digest), owner(tenant, module, number))
  end
  return body_text
end

-- request: tenant, principal, module, version (JSON without the number, which it gets here), texts (JSON),
-- gate (JSON or ''), moves_logits ('1' or ''), claim (a token or ''), modules_max and versions_max (how many
-- modules the tenant may have, and versions the module; '' for any number). Answers the version.
function changes.publish(request)
  local tenant, module = request.tenant, request.module
  local body = cjson.decode(request.version)
  local kind = redis.call('HGET', head_key(tenant, module), 'kind')
  if kind and kind ~= body.kind then
    local rule = 'module ' .. module .. ' is of the kind ' .. kind .. ', and a module has one kind'
    return {'InvalidField', 'header.kind', rule}
  end
  local newest = versions.newest_number(tenant, module)
  if newest then
    local version = versions.read(tenant, module, newest)
    -- A version that is being deleted would be acknowledged, and then be gone.
    if same_content(body, cjson.decode(version[1])) and versions.is_usable(tenant, module, newest) then
      claims.remove(request.claim, versions.digests(body))
      return {'unchanged', unpack(version, 1, 4)}
    end
  end
  local refusal = refuse_publication(request, body, newest)
  if refusal then return refusal end
  local body_text = add_version(request, body)
  claims.remove(request.claim, versions.digests(body))
  audit.add_event(request, 'publish', module, '', versions.audit_text(cjson.decode(body_text)))
  local gate, moves_logits = request.gate, request.moves_logits
  return {'done', body_text, request.texts, gate ~= '' and gate, moves_logits ~= '' and moves_logits}
end

-- request: tenant, principal, module, number, gate (JSON). Answers the version.
function changes.keep_gate(request)
  local tenant, module, number = request.tenant, request.module, request.number
  local body, texts, gate_before, moves_logits = unpack(versions.read(tenant, module, number), 1, 4)
  if not body then return {'ModuleNotFound', reference(module, number)} end
  local function audit_text(gate)
    if not gate then return '' end
    return '{"version":' .. number .. ',"gate":' .. gate .. '}'
  end
  redis.call('HSET', versions_key(tenant, module), versions.fields(number).gate, request.gate)
  audit.add_event(request, 'gate', module, audit_text(gate_before), audit_text(request.gate))
  return {'done', body, texts, request.gate, moves_logits}
end

-- request: tenant, module, number. Answers the version.
function changes.keep_moves_logits(request)
  local tenant, module, number = request.tenant, request.module, request.number
  local body, texts, gate = unpack(versions.read(tenant, module, number), 1, 3)
  if not body then return {'ModuleNotFound', reference(module, number)} end
  redis.call('HSET', versions_key(tenant, module), versions.fields(number).moves_logits, '1')
  return {'done', body, texts, gate, '1'}
end
