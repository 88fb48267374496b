-- Modules: a name with its versions and aliases. Keys are in prelude.lua.

-- Name, kind, newest version, number of versions, aliases; or false.
local function read_module(tenant, module)
  local newest = versions.newest_number(tenant, module)
  if not newest then return false end
  local kind = redis.call('HGET', head_key(tenant, module), 'kind')
  local count = redis.call('ZCARD', numbers_key(tenant, module))
  return {module, kind, newest, count, aliases.all(tenant, module)}
end

-- request: tenant, module. Returns the module or false.
function looks.module(request) return read_module(request.tenant, request.module) end

-- request: tenant, first and last (bounds of ZRANGEBYLEX), limit, kind ('' for all). Returns a page of
-- modules.
function looks.modules(request)
  local tenant, kind, limit = request.tenant, request.kind, tonumber(request.limit)
  local names = names_key(tenant, kind ~= '' and kind or nil)
  local names_of_page = redis.call('ZRANGEBYLEX', names, request.first, request.last, 'LIMIT', 0, limit + 1)
  return pages.of_keys(names_of_page, limit, function(module) return read_module(tenant, module) end)
end

-- request: tenant.
function looks.count(request) return redis.call('ZCARD', names_key(request.tenant)) end

-- What a reference means now. request: tenant, module, alias or number (the other is '').
-- Returns false, or the alias (or false) and the light versions of its targets, or of the number.
function looks.resolve(request)
  local tenant, module, alias, number = request.tenant, request.module, request.alias, request.number
  if not versions.exist(tenant, module) then return false end
  if number ~= '' then
    if not versions.is_usable(tenant, module, number) then return false end
    return {false, {versions.read_light(tenant, module, number)}}
  end
  local present, targets = aliases.read(tenant, module, alias), {}
  if not present then return {false, targets} end
  for _, share in ipairs(cjson.decode(present.targets)) do
    targets[#targets + 1] = versions.read_light(tenant, module, share.version)
  end
  return {aliases.format(alias, present), targets}
end
