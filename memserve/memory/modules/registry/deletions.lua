-- Deletions of versions. Keys are in prelude.lua, the fields of a version in versions.lua.
--
-- Whoever deletes a version first puts a mark on it, so that nothing new can use it while the workers are
-- asked whether a request does. The mark ends by itself.

-- Who uses the version, for a person; or nil.
local function user_of(tenant, module, number)
  return aliases.user_of(tenant, module, number) or preloads.user_of(tenant, module, number)
end

-- request: tenant, module, number, token, seconds.
function changes.hold(request)
  local tenant, module, number = request.tenant, request.module, request.number
  if not versions.exists(tenant, module, number) then return {'ModuleNotFound', reference(module, number)} end
  local other_token = versions.mark_token(tenant, module, number)
  local is_others = other_token and other_token ~= request.token
  local user = is_others and 'another deletion' or user_of(tenant, module, number)
  if user then return {'VersionInUse', reference(module, number), user} end
  local mark = cjson.encode({token = request.token, ends = NOW_S + tonumber(request.seconds)})
  redis.call('HSET', versions_key(tenant, module), versions.fields(number).mark, mark)
  return {'done'}
end

-- request: tenant, module, number, token. Does nothing where another token's mark is on the version.
function changes.release(request)
  local tenant, module, number = request.tenant, request.module, request.number
  if versions.mark_token(tenant, module, number) == request.token then
    redis.call('HDEL', versions_key(tenant, module), versions.fields(number).mark)
  end
  return {'done'}
end

local function remove_version(tenant, module, number, body)
  local fields = versions.fields(number)
  redis.call('HDEL', versions_key(tenant, module),
    fields.body, fields.texts, fields.gate, fields.moves_logits, fields.mark)
  redis.call('ZREM', numbers_key(tenant, module), number)
  for _, digest in ipairs(versions.digests(body)) do
    redis.call('SREM', references_key(digest), owner(tenant, module, number))
  end
  if not versions.exist(tenant, module) then
    redis.call('ZREM', names_key(tenant), module)
    redis.call('ZREM', names_key(tenant, body.kind), module)
  end
end

-- request: tenant, principal, module, number, token (whose mark must be on it still, '' for no matter).
-- Answers the version, whether nobody references its digest any more, and whether nobody of this tenant does.
function changes.delete(request)
  local tenant, module, number, token = request.tenant, request.module, request.number, request.token
  local version = versions.read(tenant, module, number)
  if not version[1] then return {'ModuleNotFound', reference(module, number)} end
  local user = user_of(tenant, module, number)
  if not user and token ~= '' and versions.mark_token(tenant, module, number) ~= token then
    user = 'requests that may have come since its mark ran out'
  end
  if user then return {'VersionInUse', reference(module, number), user} end
  local body = cjson.decode(version[1])
  remove_version(tenant, module, number, body)
  audit.add_event(request, 'delete', module, versions.audit_text(body), '')
  preloads.remove(tenant, module, number, preloads.workers(tenant, module, number))
  local owners, is_tenants_last = redis.call('SMEMBERS', references_key(body.digest)), true
  for _, other in ipairs(owners) do is_tenants_last = is_tenants_last and decode_owner(other) ~= tenant end
  return {'done', version, #owners == 0, is_tenants_last}
end
