"""Pytrees of operands and results, which are put together for each call."""


cdef class Tree:
    def __init__(self, treedef):
        self.treedef = treedef
        template = treedef.unflatten(range(treedef.num_leaves))
        self.template = template if is_plain(template) else None
        if type(self.template) is int:
            self.shape = SINGLE
        elif self.template == tuple(range(treedef.num_leaves)):
            self.shape = FLAT
        else:
            self.shape = NESTED

    cdef object build(self, list leaves):
        """The pytree of these leaves."""
        if self.template is None:
            return self.treedef.unflatten(leaves)
        return filled(self.template, leaves)


cdef bint is_plain(node):
    if node is None or type(node) is int:
        return True
    if type(node) is dict:
        return all([is_plain(item) for item in node.values()])
    return type(node) in (tuple, list) and all([is_plain(item) for item in node])


cdef object filled(template, list leaves):
    if type(template) is int:
        return leaves[<Py_ssize_t>template]
    if type(template) is tuple:
        return tuple([filled(item, leaves) for item in <tuple>template])
    if type(template) is list:
        return [filled(item, leaves) for item in <list>template]
    if type(template) is dict:
        return {name: filled(item, leaves) for name, item in (<dict>template).items()}
    return None
