class PowerModel:
    @classmethod
    def of(cls,*a): return None
class Limit: pass
